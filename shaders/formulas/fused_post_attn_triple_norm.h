// r = hidden + N(attn_out, post_attn_weight)
// residual_out = r
// out_a = N(r, weight_a)
// out_b = N(r, weight_b)
// out_c = N(r, weight_c)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct fused_post_attn_triple_norm {
  enum Tensor { kHidden, kAttnOut, kPostAttnWeight, kWeightA, kWeightB, kWeightC, kTensors };
  enum Result { kResidualOut, kOutA, kOutB, kOutC, kResults };
  enum { kSums = 2, kFirst = kAttnOut };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kAttnOut);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values second_sum(Piece piece, Values attn_out) {
    return plus_norm(piece, kHidden, attn_out, kPostAttnWeight);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values r) {
    return {{r, norm(piece, r, kWeightA), norm(piece, r, kWeightB), norm(piece, r, kWeightC)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
