// out = N(x, weight) with each pair (y0, y1) rotated: (y0 * cos - y1 * sin, y1 * cos + y0 * sin)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_rope {
  enum Tensor { kX, kWeight, kCos, kSin, kTensors };
  enum Result { kOut, kResults };
  enum { kSums = 1, kKeepFirst = 0, kRotates = 1 };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values x) {
    return {{piece.rounded(norm(piece, x, kWeight))}};
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> rotate(Piece piece, Values y, Values turned) {
    return {{rotated(piece, y, turned, kCos, kSin)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
