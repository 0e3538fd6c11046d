// out = N(x, weight) with each pair (y0, y1) rotated: (y0 * cos - y1 * sin, y1 * cos + y0 * sin)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

// By the numbers of the tensors and of the result.
template <int x, int weight, int cos, int sin, int out>
struct NormRope {
  enum { kTensors = kMaxTensors, kFirstResult = out, kResults = 1 };
  enum { kSums = 1, kFirst = x, kRotates = 1 };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(x);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values values) {
    return {{piece.rounded(norm(piece, values, weight))}};
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> rotate(Piece piece, Values y, Values turned) {
    return {{rotated(piece, y, turned, cos, sin)}};
  }
};

struct rms_norm_rope {
  enum Tensor { kX, kWeight, kCos, kSin, kTensors };
  enum Result { kOut, kResults };
  enum { kSegments = 1 };
  template <int s>
  using Segment = NormRope<kX, kWeight, kCos, kSin, kOut>;
};

}  // namespace formula
}  // namespace mlxnorm
