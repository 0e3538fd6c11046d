// out = N(x, weight) * (scale_offset + scale) + shift
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_modulate {
  enum Tensor { kX, kWeight, kScale, kShift, kTensors };
  enum Result { kOut, kResults };
  enum { kSums = 1, kKeepFirst = 0 };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values x) {
    const Values n = piece.rounded(norm(piece, x, kWeight));
    return {{modulated(piece, n, kScale, kShift)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
