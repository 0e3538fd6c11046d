// out = (beta * residual + alpha * activation(gate) * N(x, weight)) * scale
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_add {
  enum Tensor { kX, kResidual, kWeight, kScale, kGate, kTensors };
  enum Result { kOut, kResults };
  enum { kSums = 1, kFirst = kX };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values x) {
    const Values n = piece.rounded(norm(piece, x, kWeight));
    return {{scaled(piece, gated_sum(piece, kResidual, n, kGate), kScale)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
