// out_a = N(x, weight_a)
// out_b = N(x, weight_b)
// out_c = N(x, weight_c)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_triple {
  enum Tensor { kX, kWeightA, kWeightB, kWeightC, kTensors };
  enum Result { kOutA, kOutB, kOutC, kResults };
  enum { kSums = 1, kFirst = kX };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values x) {
    return {{norm(piece, x, kWeightA), norm(piece, x, kWeightB), norm(piece, x, kWeightC)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
