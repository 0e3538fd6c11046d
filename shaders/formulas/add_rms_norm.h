// r = x + residual
// out = N(r, weight)
// residual_out = r
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct add_rms_norm {
  enum Tensor { kX, kResidual, kWeight, kTensors };
  enum Result { kOut, kResidualOut, kResults };
  enum { kSums = 1, kKeepFirst = 1 };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.rounded(piece.input(kX) + piece.input(kResidual));
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values r) {
    return {{norm(piece, r, kWeight), r}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
