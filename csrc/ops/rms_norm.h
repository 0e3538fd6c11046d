// N(x, weight)
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct rms_norm {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"weight", Role::weight, Passing::optional},
  };
  static constexpr ResultSpec kResults[] = {{"out", "x"}};
  static constexpr auto& kOptions = kNormOptions;
};

}  // namespace mlxnorm::ops
