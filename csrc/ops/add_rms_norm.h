// (N(r, weight), r) with r = x + residual
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct add_rms_norm {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"residual", Role::input},
      {"weight", Role::weight, Passing::optional},
  };
  static constexpr ResultSpec kResults[] = {{"out", "x"}, {"residual_out", "x"}};
  static constexpr auto& kOptions = kFusedOptions;
};

}  // namespace mlxnorm::ops
