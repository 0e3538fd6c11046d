// moe_accum = sum over k of routing_weights[k] * expert_outputs[k]
// mlp_down = attn_out + N(moe_accum, w2)
// hidden = (residual + N(mlp_down, w3)) * layer_scalar
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct fused_moe_wsum_post_ff_norm2_endlayer {
  enum Tensor {
    kExpertOutputs,
    kRoutingWeights,
    kAttnOut,
    kResidual,
    kW2,
    kW3,
    kLayerScalar,
    kTensors
  };
  enum Result { kMlpDown, kHidden, kResults };
  enum { kSums = 2, kFirst = kComputed };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.rounded(piece.expert_sum(kExpertOutputs, kRoutingWeights));
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values second_sum(Piece piece, Values moe_accum) {
    return plus_norm(piece, kAttnOut, moe_accum, kW2);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values mlp_down) {
    return {{mlp_down, scaled(piece, plus_norm(piece, kResidual, mlp_down, kW3), kLayerScalar)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
