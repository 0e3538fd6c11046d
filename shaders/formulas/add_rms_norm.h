// r = beta * residual + alpha * activation(gate) * x
// out = N(r, weight) * (next_scale_offset + next_scale) + next_shift
// residual_out = r
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct add_rms_norm {
  enum Tensor { kX, kResidual, kWeight, kGate, kNextScale, kNextShift, kTensors };
  enum Result { kOut, kResidualOut, kResults };
  enum { kSums = 1, kFirst = kComputed };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return gated_sum(piece, kResidual, piece.input(kX), kGate);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values r) {
    const Values n = norm(piece, r, kWeight);
    return {{modulated(piece, n, kNextScale, kNextShift, kNextScaleOffset), r}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
