// activation(N(x, weight) + bias)
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct rms_norm {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"weight", Role::weight, Passing::optional},
      {"bias", Role::bias, Passing::extra},
  };
  static constexpr ResultSpec kResults[] = {{"out", "x"}};
  static constexpr Option kOptions[] = {kActivation, kWeightOffset, kCastingMode};
};

}  // namespace mlxnorm::ops
