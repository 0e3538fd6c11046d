// moe_accum = sum over k of routing_weights[k] * expert_outputs[k]
// mlp_down = attn_out + N(moe_accum, w2)
// hidden = (residual + N(mlp_down, w3)) * layer_scalar
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct fused_moe_wsum_post_ff_norm2_endlayer {
  enum Input { kExpertOutputs, kAttnOut, kResidual };
  enum Weight { kW2, kW3 };
  enum { kInputs = 3, kWeights = 2, kOutputs = 2, kHasScale = 1 };
  enum { kSums = 2, kKeepFirst = 1 };

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values first(Row row) {
    return row.rounded(row.expert_sum());
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values second(Row row, Values moe_accum) {
    return input_plus_norm(row, kAttnOut, moe_accum, kW2);
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Outputs<Values, kOutputs> finish(Row row, Values mlp_down) {
    return {{mlp_down, row.scaled(input_plus_norm(row, kResidual, mlp_down, kW3))}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
