// mlp_down = attn_out + N(moe_accum, w2) and (residual + N(mlp_down, w3)) * layer_scalar
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct fused_post_ff_norm2_endlayer {
  static constexpr TensorSpec kTensors[] = {
      {"attn_out", Role::input}, {"moe_accum", Role::input}, {"residual", Role::input},
      {"w2", Role::weight},      {"w3", Role::weight},       {"layer_scalar", Role::scale},
  };
  static constexpr int kSums = 2;
  static constexpr ResultSpec kResults[] = {{"mlp_down", "attn_out"}, {"hidden", "attn_out"}};
  static constexpr auto& kOptions = kFusedOptions;
};

}  // namespace mlxnorm::ops
