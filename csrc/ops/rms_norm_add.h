// (beta * residual + alpha * activation(gate) * N(x, weight)) * scale
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct rms_norm_add {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"residual", Role::residual},
      {"weight", Role::weight, Passing::optional},
      {"scale", Role::scale, Passing::keyword},
      {"gate", Role::scale, Passing::extra},
  };
  static constexpr ResultSpec kResults[] = {{"out", "residual"}};
  static constexpr Option kOptions[] = {kGateActivation, kAlpha,       kBeta,
                                        kWeightOffset,   kCastingMode, kRoundIntermediates};
};

}  // namespace mlxnorm::ops
