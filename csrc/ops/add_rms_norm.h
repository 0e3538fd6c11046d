// (N(r, weight) * (next_scale_offset + next_scale) + next_shift, r) with
// r = beta * residual + alpha * activation(gate) * x
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct add_rms_norm {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"residual", Role::residual},
      {"weight", Role::weight, Passing::optional},
      {"gate", Role::scale, Passing::extra},
      {"next_scale", Role::scale, Passing::extra},
      {"next_shift", Role::scale, Passing::extra},
  };
  static constexpr ResultSpec kResults[] = {{"out", "x"}, {"residual_out", "residual"}};
  static constexpr Option kOptions[] = {
      kGateActivation, kAlpha,        kBeta,        kNextScaleOffset,
      kModulation,     kWeightOffset, kCastingMode, kRoundIntermediates};
};

}  // namespace mlxnorm::ops
