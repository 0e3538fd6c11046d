// A block of a row as formulas see it; shaders/formulas/formula.h says what each function gives.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <iterator>

#include "../../../shaders/formulas/formula.h"
#include "../../ops/table.h"
#include "../arguments.h"
#include "blocks.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

template <typename T>
constexpr TensorType kTensorType = std::is_same_v<T, float>       ? kFloat32
                                   : std::is_same_v<T, c10::Half> ? kFloat16
                                                                  : kBFloat16;

// The tensors of an op for which that holds, a bit for each.
template <typename Table>
consteval uint32_t tensors_that(bool (*holds)(TensorSpec)) {
  uint32_t bits = 0;
  for (size_t t = 0; t < std::size(Table::kTensors); ++t) {
    bits |= uint32_t(holds(Table::kTensors[t])) << t;
  }
  return bits;
}

template <typename Table>
constexpr uint32_t kWeights =
    tensors_that<Table>([](TensorSpec tensor) { return tensor.role == Role::weight; });
template <typename Table>
constexpr uint32_t kResiduals =
    tensors_that<Table>([](TensorSpec tensor) { return tensor.role == Role::residual; });
template <typename Table>
constexpr uint32_t kAngles =
    tensors_that<Table>([](TensorSpec tensor) { return tensor.role == Role::angles; });
template <typename Table>
constexpr uint32_t kExtras =
    tensors_that<Table>([](TensorSpec tensor) { return tensor.passing == Passing::extra; });
template <typename Table>
constexpr uint32_t kMaybeScalars =
    tensors_that<Table>([](TensorSpec tensor) { return may_be_scalar(tensor.role); });

// An activation is of the scale or the gate, an input, where there is one; else of the result.
template <typename Table>
constexpr bool kActivatesResult = std::popcount(tensors_that<Table>([](TensorSpec tensor) {
                                    return tensor.role == Role::input || may_be_scalar(tensor.role);
                                  })) == 1;

// Where the tensors of one row begin.
template <typename Table, typename T>
struct Row {
  const void* tensors[std::size(Table::kTensors)];
  void* results[std::size(Table::kResults)];
  const float* kept = nullptr;     // see Piece
  const float* routing = nullptr;  // the routing weights, see unpack_routing_weights
};

// f(values), with values as what the tensor is made of: mostly the inputs' T, which is asked for
// first.
template <typename T, typename F>
[[gnu::always_inline]] inline auto with_type(TensorType type, const void* values, const F& f) {
  if (type == kTensorType<T>) {
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

// Is the quotient by a statistic, rounded to T, that of a product with its inverse? Where it was
// rounded to 16 bits itself: shaders/divisor.h says why.
template <typename T>
constexpr bool divides_by_product(uint32_t form) {
  return !std::is_same_v<T, float> && (form == kNormalize || form == kRmsSteps);
}

// What the calls of a kernel may have; it need not ask for the rest. See select_kernel in
// norm_rows.h.
struct Calls {
  bool extras;         // tensors that usual calls do not have
  bool mixed = true;   // types of weights and extras, weights of several rows, rounding on the way
  bool llama = false;  // unless mixed, the casting mode
  bool unpacked = false;  // weights, unless mixed: see unpack_weights in rows.h

  // Residuals have the dtype of the inputs, and no factor is another than 1.
  constexpr bool even() const { return !extras || !mixed; }
};

// kWhole: it does not run past the end of the row.
template <typename Table, typename T, Calls kCalls, bool kWhole>
struct Piece {
  using Values = Block;

  const NormArguments& call;
  const Row<Table, T>& row;
  float statistic;
  int64_t i;  // the first element
  int64_t n;  // elements, unless kWhole

  Block input(int t) const { return load(static_cast<const T*>(row.tensors[t])); }

  bool has(int t) const {
    if (has_bit(kExtras<Table>, t)) {
      return kCalls.extras && call.tensors[t] != nullptr;
    }
    return (!kCalls.mixed && has_bit(kWeights<Table>, t)) || call.tensors[t] != nullptr;
  }

  Block operand(int t) const {
    if (has_bit(kMaybeScalars<Table>, t) && has_bit(call.layout.scalars, t)) {
      return filled(element(t, 0));
    }
    if (kCalls.unpacked && has_bit(kWeights<Table>, t)) {
      return load_block<float>(static_cast<const float*>(row.tensors[t]) + i);
    }
    return with_type<T>(type(t), row.tensors[t],
                        [this](auto* values) { return this->load(values); });
  }

  // Of a row whose tables are unpacked: see UnpackedAngles.
  Block angles(int t) const {
    const float* const values = static_cast<const float*>(row.tensors[t]) + i;
    if constexpr (kWhole) {
      return load_block<float>(values);
    } else {
      return load_block<T>(values, n);
    }
  }

  float element(int t, int64_t k) const {
    return with_type<T>(type(t), row.tensors[t], [k](auto* values) { return float(values[k]); });
  }

  Block expert_sum(int experts, int /*routing_weights*/) const {
    Block sum = filled(0.0f);
    for (int64_t k = 0; k < call.layout.top_k; ++k) {
      const T* const expert =
          static_cast<const T*>(row.tensors[experts]) + k * call.layout.steps[experts];
      sum = fma(row.routing[k], load(expert), sum);
    }
    return sum;
  }

  Block divided(Block x) const {
    return divides_by_product<T>(choice(kForm)) ? x * filled(1.0f / statistic)
                                                : x / filled(statistic);
  }
  float root_dim() const { return call.layout.root_dim; }

  float number(Number which) const {
    if (kCalls.unpacked && which == kWeightOffset) {
      return -0.0f;  // a sum with it is free
    }
    const bool is_factor = which == kAlpha || which == kBeta;
    return kCalls.even() && is_factor ? 1.0f : call.options.numbers[which];
  }
  uint32_t choice(Choice which) const {
    if (!kCalls.mixed) {
      if (which == kCastingMode) {
        return kCalls.llama ? kLlama : kGemma;
      }
      if (which == kRoundIntermediates || (which == kActivation && kActivatesResult<Table>)) {
        return 0;
      }
    }
    return choice_in(call.options.choices, which);
  }

  bool has_kept() const { return kCalls.extras && row.kept != nullptr; }
  Block kept() const { return load_block<float>(row.kept + i); }

  Block filled(float value) const { return splat(value); }

  Block as_stored(Block x) const { return round_to<T>(x); }

  Block rounded(Block x) const { return choice(kRoundIntermediates) ? round_to<T>(x) : x; }

  // Also where `rounded` never does: in float32, beside an operand of 16 bits.
  Block rounded_as(int t, Block x) const {
    if ((!kCalls.mixed && sizeof(T) == 2) ||
        !choice_in(call.options.choices, kRoundIntermediates)) {
      return x;
    }
    switch (type(t)) {
      case kFloat16:
        return round_to<c10::Half>(x);
      case kBFloat16:
        return round_to<c10::BFloat16>(x);
      default:
        return x;
    }
  }

 private:
  TensorType type(int t) const {
    const bool known = (kCalls.even() && has_bit(kResiduals<Table>, t)) ||
                       (!kCalls.mixed && has_bit(kWeights<Table> | kExtras<Table>, t));
    return known ? kTensorType<T> : tensor_type(call.layout.tensor_types, t);
  }

  template <typename U>
  Block load(const U* values) const {
    if constexpr (kWhole) {
      return load_block<T>(values + i);
    } else {
      return load_block<T>(values + i, n);
    }
  }
};

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
