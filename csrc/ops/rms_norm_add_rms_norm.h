// (r, N(r, next_weight)) with r = (residual + N(x, weight)) * scale
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct rms_norm_add_rms_norm {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"residual", Role::input},
      {"weight", Role::weight, Passing::optional},
      {"next_weight", Role::weight, Passing::optional},
      {"scale", Role::scale, Passing::keyword},
  };
  static constexpr ResultSpec kResults[] = {{"residual_out", "x"}, {"out", "x"}};
  static constexpr auto& kOptions = kFusedOptions;
};

}  // namespace mlxnorm::ops
