// Three norms of x, which is read once.
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct rms_norm_triple {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"weight_a", Role::weight, Passing::optional},
      {"weight_b", Role::weight, Passing::optional},
      {"weight_c", Role::weight, Passing::optional},
  };
  static constexpr ResultSpec kResults[] = {{"out_a", "x"}, {"out_b", "x"}, {"out_c", "x"}};
  static constexpr auto& kOptions = kNormOptions;
};

}  // namespace mlxnorm::ops
