// r = hidden + N(attn_out, post_attn_weight), and three norms of r
#pragma once

#include "../call.h"

namespace mlxnorm::ops {

struct fused_post_attn_triple_norm {
  static constexpr const char* kArguments =
      "Tensor hidden, Tensor attn_out, Tensor post_attn_weight, Tensor? weight_a, Tensor? "
      "weight_b, Tensor? weight_c, "
      "float? eps=1e-6, *, float weight_offset=0.0, "
      "str casting_mode=\"gemma\", bool round_intermediates=False";
  static constexpr const char* kActivations[] = {"hidden", "attn_out"};
  static constexpr const char* kResults[] = {"residual_out", "out_a", "out_b", "out_c"};

  static NormCall check(const at::Tensor& hidden, const at::Tensor& attn_out,
                        const at::Tensor& post_attn_weight, const OptionalTensor& weight_a,
                        const OptionalTensor& weight_b, const OptionalTensor& weight_c,
                        std::optional<double> eps, double weight_offset,
                        std::string_view casting_mode, bool round_intermediates) {
    return NormCall(Op::fused_post_attn_triple_norm, "hidden", hidden)
        .input("attn_out", attn_out)
        .weight("post_attn_weight", post_attn_weight)
        .weight("weight_a", weight_a)
        .weight("weight_b", weight_b)
        .weight("weight_c", weight_c)
        .options(eps, weight_offset, casting_mode, round_intermediates);
  }
};

}  // namespace mlxnorm::ops
