// out = N(x * activation(gate), weight) + bias
// or, if norm_before_gate, (N(x, weight) + bias) * activation(gate)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct gated_rms_norm {
  enum Tensor { kX, kGate, kWeight, kBias, kTensors };
  enum Result { kOut, kResults };
  enum { kSums = 1, kFirst = kComputed };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    const Values x = piece.input(kX);
    if (piece.choice(kNormBeforeGate) != 0) {
      return x;
    }
    return gated(piece, x, kGate);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values x) {
    const Values n = shifted(piece, norm(piece, x, kWeight), kBias);
    if (piece.choice(kNormBeforeGate) == 0) {
      return {{n}};
    }
    return {{gated(piece, piece.rounded(n), kGate)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
