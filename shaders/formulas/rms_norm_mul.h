// out = N(x, weight) * activation(scale)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_mul {
  enum { kInputs = 1, kWeights = 1, kOutputs = 1, kHasScale = 1 };
  enum { kSums = 1, kKeepFirst = 0 };

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values first(Row row) {
    return row.input(0);
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Outputs<Values, kOutputs> finish(Row row, Values x) {
    return {{row.rounded(row.norm(x, 0)) * row.activated_scale()}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
