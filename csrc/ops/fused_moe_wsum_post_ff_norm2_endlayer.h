// fused_post_ff_norm2_endlayer of the sum of expert_outputs by routing_weights
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct fused_moe_wsum_post_ff_norm2_endlayer {
  static constexpr TensorSpec kTensors[] = {
      {"expert_outputs", Role::experts},
      {"routing_weights", Role::routing_weights},
      {"attn_out", Role::input},
      {"residual", Role::input},
      {"w2", Role::weight},
      {"w3", Role::weight},
      {"layer_scalar", Role::scale},
  };
  static constexpr int kSums = 2;
  static constexpr ResultSpec kResults[] = {{"mlp_down", "expert_outputs"},
                                            {"hidden", "expert_outputs"}};
  static constexpr auto& kOptions = kFusedOptions;
};

}  // namespace mlxnorm::ops
