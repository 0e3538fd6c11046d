// q_out, k_out = q and k as rms_norm_rope has x
#pragma once

#include "rms_norm_rope.h"

namespace mlxnorm {
namespace formula {

struct qk_norm_rope {
  enum Tensor { kQ, kK, kQWeight, kKWeight, kCos, kSin, kTensors };
  enum Result { kQOut, kKOut, kResults };
  enum { kSegments = 2 };
  template <int s>
  using Segment = NormRope<kQ + s, kQWeight + s, kCos, kSin, kQOut + s>;
};

}  // namespace formula
}  // namespace mlxnorm
