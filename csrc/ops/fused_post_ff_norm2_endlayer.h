// mlp_down = attn_out + N(moe_accum, w2) and (residual + N(mlp_down, w3)) * layer_scalar
#pragma once

#include "../call.h"

namespace mlxnorm::ops {

struct fused_post_ff_norm2_endlayer {
  static constexpr const char* kArguments =
      "Tensor attn_out, Tensor moe_accum, Tensor residual, Tensor w2, Tensor w3, Tensor "
      "layer_scalar, "
      "float? eps=1e-6, *, float weight_offset=0.0, "
      "str casting_mode=\"gemma\", bool round_intermediates=False";
  static constexpr const char* kActivations[] = {"attn_out", "moe_accum", "residual"};
  static constexpr const char* kResults[] = {"mlp_down", "hidden"};

  static NormCall check(const at::Tensor& attn_out, const at::Tensor& moe_accum,
                        const at::Tensor& residual, const at::Tensor& w2, const at::Tensor& w3,
                        const at::Tensor& layer_scalar, std::optional<double> eps,
                        double weight_offset, std::string_view casting_mode,
                        bool round_intermediates) {
    return NormCall(Op::fused_post_ff_norm2_endlayer, "attn_out", attn_out)
        .input("moe_accum", moe_accum)
        .input("residual", residual)
        .weight("w2", w2)
        .weight("w3", w3)
        .scale("layer_scalar", layer_scalar)
        .options(eps, weight_offset, casting_mode, round_intermediates);
  }
};

}  // namespace mlxnorm::ops
