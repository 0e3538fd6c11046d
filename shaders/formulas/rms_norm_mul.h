// out = N(x, weight) * activation(scale)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_mul {
  enum Tensor { kX, kWeight, kScale, kTensors };
  enum Result { kOut, kResults };
  enum { kSums = 1, kFirst = kX };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values x) {
    return {{piece.rounded(norm(piece, x, kWeight)) * activated(piece, kScale)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
