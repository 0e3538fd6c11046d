// N(x, weight) with rotary position embedding
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct rms_norm_rope {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"weight", Role::weight, Passing::optional},
      {"cos", Role::angles},
      {"sin", Role::angles},
  };
  static constexpr ResultSpec kResults[] = {{"out", "x"}};
  static constexpr auto& kOptions = kRopeOptions;
};

}  // namespace mlxnorm::ops
