// q_out, k_out = q and k as rms_norm_rope has x
// v_out = N(v), of which nothing is rotated
#pragma once

#include "rms_norm_rope.h"

namespace mlxnorm {
namespace formula {

struct qkv_norm_rope {
  enum Tensor { kQ, kK, kV, kQWeight, kKWeight, kCos, kSin, kTensors };
  enum Result { kQOut, kKOut, kVOut, kResults };
  enum { kSegments = 3, kNone = kTensors };
  template <int s>
  using Segment = NormRope<kQ + s, s == 2 ? kNone : kQWeight + s, kCos, kSin, kQOut + s>;
};

}  // namespace formula
}  // namespace mlxnorm
