// (r, N(r, next_weight) * (next_scale_offset + next_scale) + next_shift) with
// r = (beta * residual + alpha * activation(gate) * N(x, weight)) * scale
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct rms_norm_add_rms_norm {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"residual", Role::residual},
      {"weight", Role::weight, Passing::optional},
      {"next_weight", Role::weight, Passing::optional},
      {"scale", Role::scale, Passing::keyword},
      {"gate", Role::scale, Passing::extra},
      {"next_scale", Role::scale, Passing::extra},
      {"next_shift", Role::scale, Passing::extra},
  };
  static constexpr int kSums = 2;
  static constexpr ResultSpec kResults[] = {{"residual_out", "residual"}, {"out", "x"}};
  static constexpr Option kOptions[] = {
      kGateActivation, kAlpha,        kBeta,        kNextScaleOffset,
      kModulation,     kWeightOffset, kCastingMode, kRoundIntermediates};
};

}  // namespace mlxnorm::ops
