// out = activation(N(x, weight) + bias)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm {
  enum Tensor { kX, kWeight, kBias, kTensors };
  enum Result { kOut, kResults };
  enum { kSums = 1, kFirst = kX };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values x) {
    const Values n = shifted(piece, norm(piece, x, kWeight), kBias);
    return {{apply(piece.choice(kActivation), n)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
