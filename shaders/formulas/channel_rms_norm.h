// t = x / max(|x|, eps) * sqrt(C) * gamma + bias, or N(x, gamma) + bias; out = silu(t) or t
//
// x is divided by what piece.statistic is by the form: the norm or the rms of its channels, or
// multiplied by their inverse rms. Every step is rounded: those that the result ends with when it
// is written.
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct channel_rms_norm {
  enum Tensor { kX, kGamma, kBias, kTensors };
  enum Result { kOut, kResults };
  enum { kSums = 1, kFirst = kX };

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values first_sum(Piece piece) {
    return piece.input(kX);
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, kResults> finish(Piece piece, Values x) {
    Values t = normalized(piece, x);
    if (piece.has(kBias)) {
      t = piece.as_stored(t) + piece.operand(kBias);
    }
    if (piece.choice(kThenSilu) != 0) {
      t = apply(kSilu, piece.as_stored(t));
    }
    return {{t}};
  }

  template <typename Piece, typename Values>
  static METAL_FUNC Values normalized(Piece piece, Values x) {
    const uint32_t form = piece.choice(kForm);
    if (form == kRms) {
      return norm(piece, x, kGamma);
    }
    Values t = piece.divided(x);
    if (form != kRmsSteps) {
      t = piece.as_stored(t) * piece.root_dim();
    }
    if (!piece.has(kGamma)) {
      return t;
    }
    return piece.as_stored(t) * (piece.operand(kGamma) + piece.number(kWeightOffset));
  }
};

}  // namespace formula
}  // namespace mlxnorm
