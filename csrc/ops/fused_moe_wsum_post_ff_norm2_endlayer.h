// fused_post_ff_norm2_endlayer of the sum of expert_outputs by routing_weights
#pragma once

#include "../call.h"

namespace mlxnorm::ops {

struct fused_moe_wsum_post_ff_norm2_endlayer {
  static constexpr const char* kArguments =
      "Tensor expert_outputs, Tensor routing_weights, Tensor attn_out, Tensor residual, Tensor w2, "
      "Tensor w3, Tensor layer_scalar, "
      "float? eps=1e-6, *, float weight_offset=0.0, "
      "str casting_mode=\"gemma\", bool round_intermediates=False";
  static constexpr const char* kActivations[] = {"expert_outputs", "attn_out", "residual"};
  static constexpr const char* kResults[] = {"mlp_down", "hidden"};

  static NormCall check(const at::Tensor& expert_outputs, const at::Tensor& routing_weights,
                        const at::Tensor& attn_out, const at::Tensor& residual,
                        const at::Tensor& w2, const at::Tensor& w3, const at::Tensor& layer_scalar,
                        std::optional<double> eps, double weight_offset,
                        std::string_view casting_mode, bool round_intermediates) {
    return NormCall(Op::fused_moe_wsum_post_ff_norm2_endlayer, "expert_outputs", expert_outputs)
        .routing_weights("routing_weights", routing_weights)
        .input("attn_out", attn_out)
        .input("residual", residual)
        .weight("w2", w2)
        .weight("w3", w3)
        .scale("layer_scalar", layer_scalar)
        .options(eps, weight_offset, casting_mode, round_intermediates);
  }
};

}  // namespace mlxnorm::ops
