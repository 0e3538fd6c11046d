// The kernel of ops that normalize channels which lie apart: a formula (shaders/formulas/) applied
// to columns, a strip of a line at a time.
//
// A column is summed in the order of a row (reduce.h): channel i is added to partial sum i % 64,
// and these are folded in halves. Four of them are in registers at a time, in such an order that of
// the folded ones few are waiting for others.
#pragma once

#include <bit>
#include <utility>

#include "norm_rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

// What the calls of a kernel have in common.
struct ColumnCalls {
  Form form;
  bool silu;
};

// A channel of a block of columns as formulas see it; shaders/formulas/formula.h says what each
// function gives.
template <typename Table, typename T, ColumnCalls kCalls>
struct ColumnPiece {
  using Values = Block;

  const NormArguments& call;
  const float* operands;    // of this channel
  Block values, statistic;  // or its inverse

  Block input(int /*t*/) const { return values; }
  bool has(int t) const { return call.tensors[t] != nullptr; }
  Block operand(int t) const { return splat(operands[t]); }
  Block divided(Block x) const {
    return divides_by_product<T>(kCalls.form) ? x * statistic : x / statistic;
  }
  float root_dim() const { return call.layout.root_dim; }
  float number(Number which) const { return call.options.numbers[which]; }
  uint32_t choice(Choice which) const {
    switch (which) {
      case kForm:
        return kCalls.form;
      case kThenSilu:
        return kCalls.silu;
      default:
        return choice_in(call.options.choices, which);
    }
  }
  Block as_stored(Block x) const { return round_to<T>(x); }
};

// Some columns of a line, side by side.
template <typename Table, typename Formula, typename T, ColumnCalls kCalls>
class Strip {
 public:
  static constexpr bool kRoundsSquares = kCalls.form == kRmsSteps;
  using Sum = SumOfSquares<T, kRoundsSquares>;

  // `scratch` is as long as ColumnStrips says.
  Strip(const NormArguments& call, int64_t line, int64_t begin, int64_t count, float* scratch)
      : call_(call),
        input_(static_cast<const T*>(call.tensors[Formula::kFirst]) +
               row_offset(call.layout.tensors[Formula::kFirst], uint64_t(line)) + begin),
        result_(static_cast<T*>(call.results[0]) +
                row_offset(call.layout.results[0], uint64_t(line)) + begin),
        line_(line),
        count_(count),
        size_(scratch_size(ColumnStrips(call.layout).width)),
        statistic_(scratch),
        pending_(statistic_ + size_),
        sums_(reinterpret_cast<double*>(pending_ + kPending * size_)) {}

  // In runs, as a row: see sum_of_squares.
  void sum() {
    const int64_t dim = call_.layout.dim, runs = dim / Sum::kRun * Sum::kRun;
    std::fill_n(sums_, size_, 0.0);
    sum_channels(runs, dim);
    for (int64_t i = 0; i < runs; i += Sum::kRun) {
      sum_channels(i, i + Sum::kRun);
    }
    const Statistic<Table, T> statistic_of(call_);
    for (int64_t i = 0; i < size_; ++i) {
      const float of_sum = statistic_of(sums_[i]);
      statistic_[i] = divides_by_product<T>(kCalls.form) ? 1.0f / of_sum : of_sum;
    }
  }

  // Meanwhile the `ahead` columns that follow are fetched.
  void finish(int64_t ahead) const {
    float operands[std::size(Table::kTensors)];
    for (int64_t channel = 0; channel < call_.layout.dim; ++channel) {
      for (size_t t = 0; t < std::size(Table::kTensors); ++t) {
        operands[t] = operand(t, channel);
      }
      const T* const input = input_of(channel);
      T* const result = result_ + channel * call_.layout.result_step;
      const auto finished = [&](int64_t i, auto... n) {
        const Block values = load_block<T>(input + i, n...);
        const ColumnPiece<Table, T, kCalls> piece{call_, operands, values,
                                                  load_block<float>(statistic_ + i)};
        return Formula::finish(piece, Formula::first_sum(piece)).values[0];
      };
      int64_t i = 0;
      for (; i + kBlock <= count_; i += kBlock) {
        if (i < ahead) {
          prefetch_block(input + count_ + i);
        }
        if (call_.streaming) {
          stream_block<T>(result + i, finished(i));
        } else {
          store_block<T>(result + i, finished(i));
        }
      }
      if (i < count_) {
        store_block<T>(result + i, finished(i, count_ - i), count_ - i);
      }
    }
  }

  static constexpr int kPending = std::countr_zero(uint64_t(Sum::kLanes / 4));
  static constexpr int kScratchRows = 1 + kPending + 2;

 private:
  const T* input_of(int64_t channel) const {
    return input_ + channel * call_.layout.steps[Formula::kFirst];
  }

  float operand(size_t t, int64_t channel) const {
    if (call_.tensors[t] == nullptr || has_dtype_of_results(Table::kTensors[t].role)) {
      return 0.0f;
    }
    const int64_t i =
        row_offset(call_.layout.tensors[t], uint64_t(line_)) + channel * call_.layout.steps[t];
    return with_type<T>(tensor_type(call_.layout.tensor_types, int(t)), call_.tensors[t],
                        [i](auto* values) { return float(values[i]); });
  }

  // Adds the sum of those channels to that of the others.
  void sum_channels(int64_t begin, int64_t end) {
    constexpr int64_t kQuarter = Sum::kLanes / 4;
    for (uint64_t turn = 0; turn < kQuarter; ++turn) {
      // Of neighbours in this order, both folded, one is added to the other.
      const int64_t first = begin + reversed(turn);
      const int waiting = std::countr_one(turn);
      for_each_block(count_, [&](int64_t i, auto... n) {
        const auto lane = [&](int64_t number) {
          return sum_of_lane(first + number * kQuarter, end, i, n...);
        };
        Block sum = (lane(0) + lane(2)) + (lane(1) + lane(3));
        for (int k = 0; k < waiting; ++k) {
          sum = load_block<float>(pending_ + k * size_ + i) + sum;
        }
        store_block<float>((waiting < kPending ? pending_ + waiting * size_ : statistic_) + i, sum);
      });
    }
    for (int64_t i = 0; i < size_; ++i) {
      sums_[i] += double(statistic_[i]);
    }
  }

  // In the order in which a tree of halving distances needs them.
  static int64_t reversed(uint64_t turn) {
    int64_t result = 0;
    for (int bit = 0; bit < kPending; ++bit) {
      result = result << 1 | int64_t(turn >> bit & 1);
    }
    return result;
  }

  template <typename... N>
  Block sum_of_lane(int64_t channel, int64_t end, int64_t i, N... n) const {
    Block sum = splat(0.0f);
    for (; channel < end; channel += Sum::kLanes) {
      sum = plus_squares<T, kRoundsSquares>(sum, load_block<T>(input_of(channel) + i, n...));
    }
    return sum;
  }

  const NormArguments& call_;
  const T* input_;
  T* result_;
  int64_t line_, count_, size_;
  float *statistic_, *pending_;
  double* sums_;
};

template <typename Table, typename Formula, typename T, ColumnCalls kCalls>
MLXNORM_FLAT void norm_columns(const NormArguments& call, int64_t begin, int64_t end,
                               float* scratch) {
  const ColumnStrips strips(call.layout);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t line = i / strips.of_a_line, first = i % strips.of_a_line * strips.width;
    const int64_t left = call.layout.line - first, count = std::min(strips.width, left);
    Strip<Table, Formula, T, kCalls> strip(call, line, first, count, scratch);
    strip.sum();
    strip.finish(i + 1 < end ? std::min(strips.width, left - count) : 0);
  }
  if (call.streaming) {
    stream_fence();
  }
}

template <typename Table, typename Formula, typename T>
NormKernel select_column_kernel(const NormArguments& call) {
  const auto of_form = [&]<Form form>(std::integral_constant<Form, form>) -> NormKernel {
    const auto kernel = [&]<bool silu>(std::bool_constant<silu>) -> NormKernel {
      constexpr ColumnCalls kCalls{form, silu};
      return {norm_columns<Table, Formula, T, kCalls>,
              Strip<Table, Formula, T, kCalls>::kScratchRows};
    };
    return choice_in(call.options.choices, kThenSilu) ? kernel(std::true_type())
                                                      : kernel(std::false_type());
  };
  switch (choice_in(call.options.choices, kForm)) {
    case kRmsSteps:
      return of_form(std::integral_constant<Form, kRmsSteps>());
    case kNormalize:
      return of_form(std::integral_constant<Form, kNormalize>());
    case kNormalizeFloat32:
      return of_form(std::integral_constant<Form, kNormalizeFloat32>());
    default:
      return of_form(std::integral_constant<Form, kRms>());
  }
}

template <typename Table, typename Formula>
NormKernel select_column_kernel(const NormArguments& call) {
  switch (call.layout.dtype) {
    case DType::float16:
      return select_column_kernel<Table, Formula, c10::Half>(call);
    case DType::bfloat16:
      return select_column_kernel<Table, Formula, c10::BFloat16>(call);
    default:
      return select_column_kernel<Table, Formula, float>(call);
  }
}

}  // namespace

// Of rows, or of columns.
#define MLXNORM_DEFINE_KERNEL_OF_CHANNELS(op)                                        \
  NormKernel op##_kernel(const NormArguments& call) {                                \
    static_assert(fits<ops::op, formula::op>());                                     \
    return call.layout.line == 0 ? select_kernel<ops::op, formula::op>(call)         \
                                 : select_column_kernel<ops::op, formula::op>(call); \
  }

}  // namespace mlxnorm::cpu::CPU_CAPABILITY
