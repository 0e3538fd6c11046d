// out = N(x, weight) * (scale_offset + scale) + shift
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_modulate {
  enum Tensor { kX, kWeight, kScale, kShift, kTensors };
  enum Result { kOut, kResults };
  enum { kSums = 1, kFirst = kX };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values x) {
    return {{modulated(piece, norm(piece, x, kWeight), kScale, kShift, kScaleOffset)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
