// r = hidden + N(attn_out, post_attn_weight), and three norms of r
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct fused_post_attn_triple_norm {
  static constexpr TensorSpec kTensors[] = {
      {"hidden", Role::input},
      {"attn_out", Role::input},
      {"post_attn_weight", Role::weight},
      {"weight_a", Role::weight, Passing::optional},
      {"weight_b", Role::weight, Passing::optional},
      {"weight_c", Role::weight, Passing::optional},
  };
  static constexpr int kSums = 2;
  static constexpr ResultSpec kResults[] = {
      {"residual_out", "hidden"}, {"out_a", "hidden"}, {"out_b", "hidden"}, {"out_c", "hidden"}};
  static constexpr auto& kOptions = kFusedOptions;
};

}  // namespace mlxnorm::ops
