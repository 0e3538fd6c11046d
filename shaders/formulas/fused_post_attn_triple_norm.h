// r = hidden + N(attn_out, post_attn_weight)
// out_a = N(r, weight_a)
// out_b = N(r, weight_b)
// out_c = N(r, weight_c)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct fused_post_attn_triple_norm {
  enum Input { kHidden, kAttnOut };
  enum Weight { kPostAttn, kA, kB, kC };
  enum { kInputs = 2, kWeights = 4, kOutputs = 4, kHasScale = 0 };
  enum { kSums = 2, kKeepFirst = 0 };

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values first(Row row) {
    return row.input(kAttnOut);
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values second(Row row, Values attn_out) {
    return input_plus_norm(row, kHidden, attn_out, kPostAttn);
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Outputs<Values, kOutputs> finish(Row row, Values r) {
    return {{r, row.norm(r, kA), row.norm(r, kB), row.norm(r, kC)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
