// r = (beta * residual + alpha * activation(gate) * N(x, weight)) * scale
// residual_out = r
// out = N(r, next_weight) * (next_scale_offset + next_scale) + next_shift
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_add_rms_norm {
  enum Tensor {
    kX,
    kResidual,
    kWeight,
    kNextWeight,
    kScale,
    kGate,
    kNextScale,
    kNextShift,
    kTensors
  };
  enum Result { kResidualOut, kOut, kResults };
  enum { kSums = 2, kFirst = kX };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values second_sum(Piece piece, Values x) {
    const Values n = piece.rounded(norm(piece, x, kWeight));
    return piece.rounded_as(kResidual,
                            scaled(piece, gated_sum(piece, kResidual, n, kGate), kScale));
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values r) {
    const Values n = norm(piece, r, kNextWeight);
    return {{r, modulated(piece, n, kNextScale, kNextShift, kNextScaleOffset)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
