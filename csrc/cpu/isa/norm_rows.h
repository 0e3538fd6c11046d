// The kernel of every op: a formula (shaders/formulas/) applied to the rows of a call.
#pragma once

#include "../../ops/fits.h"
#include "norm_part.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

static_assert(kLargestBlock % kBlock == 0, "scratch holds whole blocks");

// For unpacked angles, or what a sum is over, if that is more than an input as it is.
template <typename Table, typename Formula, typename T>
constexpr int kScratchRows =
    Rotates<Formula>::value ? UnpackedAngles<Table, T>::kTables
                            : kComputesFirst<Formula> || Formula::kSums == 2;

template <typename Table>
constexpr size_t kGate = number_of<Table>("gate");
template <typename Table>
constexpr bool kActivatesGate = has_option(Table::kOptions, kGateActivation);

// Do rows that follow one another share the gate, and is it worth keeping once it is activated?
template <typename Table>
bool keeps_gate(const NormArguments& call) {
  if constexpr (kActivatesGate<Table>) {
    const RowLayout& rows = call.layout.tensors[kGate<Table>];
    return call.tensors[kGate<Table>] != nullptr &&
           choice_in(call.options.choices, kGateActivation) != kNoGateActivation &&
           call.layout.rows > 1 && row_offset(rows, 0) == row_offset(rows, 1);
  }
  return false;
}

// Of scratch, for routing weights or an activated gate: no op has both.
template <typename Table>
int kept_rows(const NormArguments& call) {
  if constexpr (kRoutes<Table>) {
    static_assert(!kActivatesGate<Table>);
    const int64_t size = scratch_size(call.layout.dim);
    return int((call.layout.top_k + size - 1) / size);
  }
  return keeps_gate<Table>(call);
}

// Where a first pass takes its time, with experts or an activation, memory should not rest in it:
// it fetches the first tensor of a row to come. Where it takes none, that would only come too
// early.
template <typename Table, typename Formula>
constexpr bool kFetchesInFirst =
    kComputesFirst<Formula> && (kRoutes<Table> || has_option(Table::kOptions, kActivation));

// Short rows of 16 bits are summed several at a time before they are finished: their partial sums
// are folded together, and so are roots and divisions. In float32 that gains nothing, and without
// vectors a row is folded in another order.
template <typename Formula, typename T>
constexpr bool kSumsTogether =
    kHasVectors && !kComputesFirst<Formula> && Formula::kSums == 1 && sizeof(T) == 2;
constexpr int64_t kShortRow = 512, kRowsTogether = 8;

// What is made of the sum of each row of [begin, end), kRowsTogether at most.
template <typename Table, typename Formula, typename T, Calls kCalls>
inline void sum_together(const NormArguments& call, const Rows<Table, T, kCalls>& rows,
                         const Statistic<Table, T>& statistic_of, int64_t begin, int64_t end,
                         float* statistics) {
  using Sum = SumOfSquares<T>;
  static_assert(kShortRow < Sum::kRun);
  const auto slots = std::make_integer_sequence<int64_t, Sum::kBlocks>();
  constexpr int64_t kCount = kRowsTogether * Sum::kLeft;
  Vec sums[kCount];
  std::fill(std::begin(sums), std::end(sums), Vec(0.0f));
  for (int64_t r = 0; r < end - begin; ++r) {
    const Row<Table, T> here = rows[begin + r];
    const auto first = [&](int64_t i, auto... n) {
      return Formula::first_sum(
          Piece<Table, T, kCalls, sizeof...(n) == 0>{call, here, 0.0f, i, n...});
    };
    Sum sum = sum_of_rest<Sum>(0, call.layout.dim, first, slots);
    const Vec* const folded = sum.folded();
    for (int64_t left = 0; left < Sum::kLeft; ++left) {
      sums[left * kRowsTogether + r] = folded[left];
    }
  }
  float totals[kCount];
  totals_of<kCount>(sums, totals);
  for (int64_t r = 0; r < kRowsTogether; ++r) {
    statistics[r] =
        statistic_of(Sum::kLeft == 2 ? totals[r] + totals[kRowsTogether + r] : totals[r]);
  }
}

template <typename Table, typename Formula, typename T, Calls kCalls>
MLXNORM_FLAT void norm_rows(const NormArguments& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t dim = call.layout.dim;
  const Rows<Table, T, kCalls> rows(call);
  const Statistic<Table, T> statistic_of(call);
  // Parts of heads may end within a block.
  const bool streaming =
      call.streaming && (!Rotates<Formula>::value || has_whole_parts(call.layout));
  const bool sums_together = kSumsTogether<Formula, T> && dim <= kShortRow && end - begin > 1 &&
                             !rounds_squares<Table>(call);
  const int64_t together = sums_together ? kRowsTogether : 1;
  const int64_t rows_ahead = prefetch_distance<T>(dim) + together - 1;
  constexpr auto kFetchedFirst = std::index_sequence<0>();
  constexpr auto kFetchedLast = tensors_from<Table, kFetchesInFirst<Table, Formula>>();
  float statistics[kRowsTogether];
  const float* next_statistic = statistics;
  int64_t summed = begin;  // the end of the rows that these are of
  UnpackedAngles<Table, T> angles(call, scratch);
  const Summands<Formula> summands{scratch};
  const void* kept_gate = nullptr;
  // What is kept of a row for those that follow, or for all of its blocks.
  float* const kept = scratch + (kScratchRows<Table, Formula, T> * scratch_size(dim));
  for (int64_t row = begin; row < end; ++row) {
    Row<Table, T> here = rows[row];
    if constexpr (kRoutes<Table>) {
      here.routing = unpack_routing_weights(call, here, kept);
    }
    // Rows to come are fetched while this one, already in the cache, is computed and written.
    const Row<Table, T> later = rows[std::min(row + rows_ahead, end - 1)];
    float statistic = 0.0f;
    // A number of elements is given for the last piece, when it is not whole.
    const auto piece_at = [&](int64_t i, auto... n) {
      return Piece<Table, T, kCalls, sizeof...(n) == 0>{call, here, statistic, i, n...};
    };

    if constexpr (kCalls.extras && kActivatesGate<Table>) {
      if (keeps_gate<Table>(call)) {
        const void* const gate = here.tensors[kGate<Table>];
        if (gate != kept_gate) {
          kept_gate = gate;
          for_each_block(dim, [&](int64_t i, auto... n) {
            store_block<float>(kept + i, activated_gate(piece_at(i, n...), kGate<Table>));
          });
        }
        here.kept = kept;
      }
    }

    const auto first = [&](int64_t i, auto... n) {
      if constexpr (kFetchesInFirst<Table, Formula> && sizeof...(n) == 0) {
        prefetch_inputs<Table, T, kCalls>(call, later, i, kFetchedFirst);
      }
      return summands.first(piece_at(i, n...));
    };
    if (sums_together) {
      if constexpr (kSumsTogether<Formula, T>) {
        if (row == summed) {
          summed = std::min(row + together, end);
          sum_together<Table, Formula>(call, rows, statistic_of, row, summed, statistics);
          next_statistic = statistics;
        }
        statistic = *next_statistic++;
      }
    } else {
      statistic = statistic_of(sum_of_squares_of<Table, T>(call, first));
    }
    if constexpr (Formula::kSums == 2) {
      const auto second = [&](int64_t i, auto... n) { return summands.second(piece_at(i, n...)); };
      statistic = statistic_of(sum_of_squares<T>(dim, second));
    }

    // Two loops, or the compiler keeps no constants in registers.
    const auto finish = [&]<bool kStreams>(std::bool_constant<kStreams>) {
      const Store<T, kStreams> store;
      if constexpr (Rotates<Formula>::value) {
        for (int64_t head = 0; head < call.layout.heads; ++head) {
          const Row<Table, T> ahead = head_of<kCalls>(call, later, head);
          finish_head<Formula, kCalls>(
              call, angles.of_head(head_of<kCalls>(call, here, head)), statistic, store,
              [&](int64_t i) { prefetch_row<Table, T>(call, ahead, i, kStreams); });
        }
        return;
      }
      for_each_block(dim, [&](int64_t i, auto... n) {
        if constexpr (sizeof...(n) == 0) {
          prefetch_inputs<Table, T, kCalls>(call, later, i, kFetchedLast);
          if (!kStreams) {
            for_each_result<Table, T, kCalls>(
                call, later,
                [i](auto /*number*/, auto* values) {
                  prefetch_block</*kForWriting=*/true>(values + i);
                },
                kResultNumbers<Table>);
          }
        }
        const auto piece = piece_at(i, n...);
        const auto results = Formula::finish(piece, summands.last_again(piece));
        const auto write = [&](auto number, auto* values) {
          store(values + i, results.values[number()], n...);
        };
        for_each_result<Table, T, kCalls>(call, here, write, kResultNumbers<Table>);
      });
    };
    if (streaming) {
      finish(std::true_type());
    } else {
      finish(std::false_type());
    }
  }
  if (streaming) {
    stream_fence();
  }
}

template <typename Table, typename Formula, typename T, Calls kCalls>
void norm_rows_by_unpacked(const NormArguments& call, int64_t begin, int64_t end, float* scratch) {
  NormArguments unpacked = call;
  scratch = unpack_weights<Table, T>(unpacked, scratch);
  norm_rows<Table, Formula, T, kCalls>(unpacked, begin, end, scratch);
}

// In float32 it would save the sum with the offset alone.
template <typename Table, typename T>
constexpr bool kUnpacksWeights = kHasVectors && sizeof(T) == 2 && kWeights<Table> != 0;

// Is there more than a row to read them, and are they small enough to stay in a near cache?
template <typename Table, typename Formula, typename T>
bool unpacks_weights(const NormArguments& call) {
  constexpr int64_t kBytes = 64 << 10, kBytesOfElement = std::popcount(kWeights<Table>) * 4;
  return kUnpacksWeights<Table, T> && call.layout.rows > 1 &&
         scratch_size(call.layout.dim) * kBytesOfElement <= kBytes &&
         (!Rotates<Formula>::value || has_whole_parts(call.layout));
}

template <typename Table>
bool has_extras(const NormArguments& call) {
  for (size_t t = 0; t < std::size(Table::kTensors); ++t) {
    if (has_bit(kExtras<Table>, int(t)) && call.tensors[t] != nullptr) {
      return true;
    }
  }
  return false;
}

// See Calls::even.
template <typename Table, typename T>
bool is_even(const NormArguments& call) {
  for (size_t t = 0; t < std::size(Table::kTensors); ++t) {
    if (has_bit(kResiduals<Table>, int(t)) &&
        tensor_type(call.layout.tensor_types, int(t)) != kTensorType<T>) {
      return false;
    }
  }
  for (const Number factor : {kAlpha, kBeta}) {
    if (has_option(Table::kOptions, factor) && call.options.numbers[factor] != 1.0f) {
      return false;
    }
  }
  return true;
}

// Every weight is there, one row that all share; weights, unless unpacked, and extras have the
// dtype of the inputs; no intermediate value is rounded (in float32 none ever is), and the result
// has no activation.
template <typename Table, typename T>
bool is_mixed(const NormArguments& call, bool unpacked) {
  for (int t = 0; t < int(std::size(Table::kTensors)); ++t) {
    const bool is_weight = has_bit(kWeights<Table>, t);
    const TensorType type = tensor_type(call.layout.tensor_types, t);
    if (is_weight && (type == kAbsent || !is_one_row(call.layout.tensors[t]))) {
      return true;
    }
    const bool is_read_as_it_is =
        (is_weight && !unpacked) || (has_bit(kExtras<Table>, t) && call.tensors[t] != nullptr);
    if (is_read_as_it_is && type != kTensorType<T>) {
      return true;
    }
  }
  const uint32_t choices = call.options.choices;
  if (kActivatesResult<Table> && choice_in(choices, kActivation) != kNoActivation) {
    return true;
  }
  return sizeof(T) == 2 && choice_in(choices, kRoundIntermediates);
}

// Some kernels: of every kind, an object would take minutes to compile.
template <typename Table, typename Formula, typename T>
NormKernel select_kernel(const NormArguments& call) {
  using AnyPiece = Piece<Table, T, Calls{.extras = true}, true>;
  constexpr bool kHasSecond = requires(AnyPiece piece, Block x) { Formula::second_sum(piece, x); };
  static_assert(kHasSecond == (Formula::kSums == 2), "a second sum that nobody would take");
  const bool unpacked = unpacks_weights<Table, Formula, T>(call);
  const auto usual = [&]<bool kExtra, bool kLlamas>(std::bool_constant<kExtra>,
                                                    std::bool_constant<kLlamas>,
                                                    int scratch_rows) -> NormKernel {
    if constexpr (kUnpacksWeights<Table, T>) {
      if (unpacked) {
        constexpr Calls kCalls{
            .extras = kExtra, .mixed = false, .llama = kLlamas, .unpacked = true};
        return {norm_rows_by_unpacked<Table, Formula, T, kCalls>,
                scratch_rows + std::popcount(kWeights<Table>)};
      }
    }
    constexpr Calls kCalls{.extras = kExtra, .mixed = false, .llama = kLlamas};
    return {norm_rows<Table, Formula, T, kCalls>, scratch_rows};
  };
  const auto kernel = [&]<bool kExtra>(std::bool_constant<kExtra> extra, bool mixed) -> NormKernel {
    const int scratch_rows = kScratchRows<Table, Formula, T> + kept_rows<Table>(call);
    if (mixed) {
      return {norm_rows<Table, Formula, T, Calls{.extras = kExtra}>, scratch_rows};
    }
    if constexpr (sizeof(T) == 2) {
      if (choice_in(call.options.choices, kCastingMode) == kLlama) {
        return usual(extra, std::true_type(), scratch_rows);
      }
    }
    return usual(extra, std::false_type(), scratch_rows);
  };
  const bool mixed = is_mixed<Table, T>(call, unpacked);
  if constexpr (kExtras<Table> != 0 || kResiduals<Table> != 0) {
    const bool even = is_even<Table, T>(call);
    if (!even || has_extras<Table>(call)) {
      return kernel(std::true_type(), mixed || !even);
    }
  }
  return kernel(std::false_type(), mixed);
}

template <typename Table, typename Formula, typename T>
NormKernel select_kernels(const NormArguments& call) {
  NormKernel kernel = select_kernel<Table, Formula, T>(call);
  kernel.of_part = part_kernel<Table, Formula, T>();
  return kernel;
}

template <typename Table, typename Formula>
NormKernel select_kernel(const NormArguments& call) {
  switch (call.layout.dtype) {
    case DType::float16:
      return select_kernels<Table, Formula, c10::Half>(call);
    case DType::bfloat16:
      return select_kernels<Table, Formula, c10::BFloat16>(call);
    default:
      return select_kernels<Table, Formula, float>(call);
  }
}

}  // namespace

#define MLXNORM_DEFINE_KERNEL(op)                                                  \
  NormKernel op##_kernel(const NormArguments& call) {                              \
    static_assert(fits<ops::op, formula::op>());                                   \
    return select_kernel<ops::op, typename SegmentOf<formula::op, 0>::type>(call); \
  }

// Of an op whose segments are norms as that other op has them.
#define MLXNORM_DEFINE_SEGMENTS(op, segment)           \
  NormKernel op##_kernel(const NormArguments& call) {  \
    static_assert(fits<ops::op, formula::op>());       \
    static_assert(ops::op::kSegmentOp == Op::segment); \
    return segment##_kernel(call);                     \
  }

}  // namespace mlxnorm::cpu::CPU_CAPABILITY
