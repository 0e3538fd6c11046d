// r = (residual + N(x, weight)) * scale
// residual_out = r
// out = N(r, next_weight)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_add_rms_norm {
  enum Tensor { kX, kResidual, kWeight, kNextWeight, kScale, kTensors };
  enum Result { kResidualOut, kOut, kResults };
  enum { kSums = 2, kKeepFirst = 0 };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values second_sum(Piece piece, Values x) {
    return piece.rounded(scaled(piece, plus_norm(piece, kResidual, x, kWeight), kScale));
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values r) {
    return {{r, norm(piece, r, kNextWeight)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
