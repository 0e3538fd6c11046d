// The kernel of every op: a formula (shaders/formulas/) applied to the rows of a call.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>

#include "../kernels.h"
#include "row.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

// Where the tensors of one row begin.
template <typename T>
struct RowPointers {
  const T* inputs[kMaxInputs];
  const void* scale;
  const void* routing_weights;
  T* outputs[kMaxOutputs];
};

template <typename T>
constexpr OperandType kOperandType = std::is_same_v<T, float>       ? kFloat32
                                     : std::is_same_v<T, c10::Half> ? kFloat16
                                                                    : kBFloat16;

// f(values), with values as what the operand is made of: mostly the activations' T, which is asked
// for first.
template <typename T, typename F>
[[gnu::always_inline]] inline auto with_type(OperandType type, const void* values, const F& f) {
  if (type == kOperandType<T>) {
    return f(static_cast<const T*>(values));
  }
  switch (type) {
    case kFloat16:
      return f(static_cast<const c10::Half*>(values));
    case kBFloat16:
      return f(static_cast<const c10::BFloat16*>(values));
    default:
      return f(static_cast<const float*>(values));
  }
}

inline const void* operand_row(const NormArguments& call, int operand, const RowLayout& layout,
                               int64_t row) {
  const int64_t size = element_size(operand_type(call.operand_types, operand));
  return static_cast<const char*>(call.operands[operand]) +
         row_offset(layout, uint64_t(row)) * size;
}

template <typename Formula, typename T>
inline RowPointers<T> row_of(const NormArguments& call, int64_t row) {
  RowPointers<T> result;
  for (int k = 0; k < Formula::kInputs; ++k) {
    result.inputs[k] =
        static_cast<const T*>(call.inputs[k]) + row_offset(call.input_rows[k], uint64_t(row));
  }
  if constexpr (Formula::kHasScale) {
    result.scale = operand_row(call, kScale, call.scale_rows, row);
  }
  result.routing_weights = operand_row(call, kRoutingWeights, call.routing_rows, row);
  for (int k = 0; k < Formula::kOutputs; ++k) {
    result.outputs[k] = static_cast<T*>(call.outputs[k]) + row * call.dim;
  }
  return result;
}

// A block of a row as formulas see it. kPlain: see is_plain. kWhole: it does not run past the end
// of the row.
template <typename T, bool kPlain, bool kWhole>
struct RowBlock {
  using Values = Block;

  const NormArguments& call;
  const RowPointers<T>& row;
  float inverse_rms;
  int64_t i;  // the first element
  int64_t n;  // elements, unless kWhole

  Block input(int k) const { return load(row.inputs[k]); }

  Block norm(Block x, int weight) const {
    x = x * inverse_rms;
    if constexpr (kPlain) {
      return x * (load(static_cast<const T*>(call.operands[weight])) + call.options.weight_offset);
    }
    if (call.operands[weight] == nullptr) {
      return x;
    }
    if (call.options.casting_mode == CastingMode::llama) {
      x = round_to<T>(x);
    }
    return x * (operand(weight, call.operands[weight]) + call.options.weight_offset);
  }

  Block scaled(Block x) const { return call.operands[kScale] == nullptr ? x : x * scale(); }

  Block activated_scale() const {
    if (call.activation == kNoActivation) {
      return scale();
    }
    const Block activated = mlxnorm::activated(call.activation, scale());
    return call.options.round_intermediates ? rounded_as(kScale, activated) : activated;
  }

  Block expert_sum() const {
    Block sum = splat(0.0f);
    for (int64_t k = 0; k < call.top_k; ++k) {
      const float weight = element(kRoutingWeights, row.routing_weights, k);
      sum = fmadd(load(row.inputs[0] + k * call.expert_stride), Vec(weight), sum);
    }
    return sum;
  }

  Block rounded(Block x) const {
    return !kPlain && call.options.round_intermediates ? round_to<T>(x) : x;
  }

 private:
  template <typename U>
  Block load(const U* values) const {
    if constexpr (kWhole) {
      return load_block(values + i);
    } else {
      return load_block(values + i, n);
    }
  }

  Block operand(int index, const void* values) const {
    return with_type<T>(operand_type(call.operand_types, index), values,
                        [this](auto* typed) { return this->load(typed); });
  }

  float element(int index, const void* values, int64_t k) const {
    return with_type<T>(operand_type(call.operand_types, index), values,
                        [k](auto* typed) { return float(typed[k]); });
  }

  Block rounded_as(int index, Block x) const {
    switch (operand_type(call.operand_types, index)) {
      case kFloat16:
        return round_to<c10::Half>(x);
      case kBFloat16:
        return round_to<c10::BFloat16>(x);
      default:
        return x;
    }
  }

  Block scale() const {
    return call.scale_is_scalar ? splat(element(kScale, row.scale, 0)) : operand(kScale, row.scale);
  }
};

template <typename Formula, typename T, bool kPlain>
void norm_rows(const NormArguments& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t dim = call.dim;
  const InverseRms inverse_rms_of(dim, call.options.eps);
  const bool streaming = call.streaming;
  const int64_t rows_ahead = prefetch_distance<T>(dim);
  for (int64_t row = begin; row < end; ++row) {
    const RowPointers<T> here = row_of<Formula, T>(call, row);
    float inverse_rms = 0.0f;
    // A number of elements is given for the last block, when it is not whole.
    const auto block = [&](int64_t i, auto... n) {
      return RowBlock<T, kPlain, sizeof...(n) == 0>{call, here, inverse_rms, i, n...};
    };
    // Of the block at hand, what the last sum was over.
    const auto first_again = [&](auto at) {
      return Formula::kKeepFirst ? load_block(scratch + at.i) : Formula::first(at);
    };
    const auto last_again = [&](auto at) {
      return Formula::kSums == 2 ? load_block(scratch + at.i) : first_again(at);
    };

    const auto first = [&](int64_t i, auto... n) {
      const Block values = Formula::first(block(i, n...));
      if constexpr (Formula::kKeepFirst) {
        store_block(scratch + i, values);
      }
      return values;
    };
    inverse_rms = inverse_rms_of(sum_of_squares<T>(dim, first));
    if constexpr (Formula::kSums == 2) {
      const auto second = [&](int64_t i, auto... n) {
        const auto at = block(i, n...);
        const Block values = Formula::second(at, first_again(at));
        store_block(scratch + i, values);
        return values;
      };
      inverse_rms = inverse_rms_of(sum_of_squares<T>(dim, second));
    }

    const auto finish = [&](int64_t i, auto... n) {
      const auto at = block(i, n...);
      const auto outputs = Formula::finish(at, last_again(at));
      for (int k = 0; k < Formula::kOutputs; ++k) {
        if constexpr (sizeof...(n) == 0) {
          if (streaming) {
            stream_block(here.outputs[k] + i, outputs.values[k]);
            continue;
          }
        }
        store_block(here.outputs[k] + i, outputs.values[k], n...);
      }
    };
    // Rows to come are fetched while this one, already in the cache, is written.
    const RowPointers<T> later = row_of<Formula, T>(call, std::min(row + rows_ahead, end - 1));
    int64_t i = 0;
    for (; i + kBlock <= dim; i += kBlock) {
      for (int k = 0; k < Formula::kInputs; ++k) {
        prefetch_block(later.inputs[k] + i);
      }
      for (int64_t k = 1; k < call.top_k; ++k) {
        prefetch_block(later.inputs[0] + k * call.expert_stride + i);
      }
      if (!streaming) {
        for (int k = 0; k < Formula::kOutputs; ++k) {
          prefetch_block</*kForWriting=*/true>(later.outputs[k] + i);
        }
      }
      finish(i);
    }
    if (i < dim) {
      finish(i, dim - i);
    }
  }
  if (streaming) {
    stream_fence();
  }
}

// The usual call, for which there are kernels that need not ask: every weight is there in the dtype
// of the activations, and nothing is rounded on the way (in float32 nothing ever is).
template <typename Formula, typename T>
bool is_plain(const NormArguments& call) {
  for (int i = 0; i < Formula::kWeights; ++i) {
    if (operand_type(call.operand_types, i) != kOperandType<T>) {
      return false;
    }
  }
  return std::is_same_v<T, float> ||
         (call.options.casting_mode == CastingMode::gemma && !call.options.round_intermediates);
}

template <typename Formula, typename T>
NormKernel select_kernel(const NormArguments& call) {
  constexpr bool kKeepsRows = Formula::kKeepFirst || Formula::kSums == 2;
  return {is_plain<Formula, T>(call) ? norm_rows<Formula, T, true> : norm_rows<Formula, T, false>,
          kKeepsRows};
}

template <typename Formula>
NormKernel select_kernel(const NormArguments& call, DType dtype) {
  switch (dtype) {
    case DType::float16:
      return select_kernel<Formula, c10::Half>(call);
    case DType::bfloat16:
      return select_kernel<Formula, c10::BFloat16>(call);
    default:
      return select_kernel<Formula, float>(call);
  }
}

}  // namespace

#define MLXNORM_DEFINE_KERNEL(op)                                  \
  NormKernel op##_kernel(const NormArguments& call, DType dtype) { \
    return select_kernel<formula::op>(call, dtype);                \
  }

}  // namespace mlxnorm::cpu::CPU_CAPABILITY
