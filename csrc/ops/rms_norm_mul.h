// N(x, weight) * activation(scale)
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct rms_norm_mul {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"weight", Role::weight, Passing::optional},
      {"scale", Role::scale},
  };
  static constexpr ResultSpec kResults[] = {{"out", "x"}};
  static constexpr Option kOptions[] = {kActivation, kWeightOffset, kCastingMode,
                                        kRoundIntermediates};
};

}  // namespace mlxnorm::ops
