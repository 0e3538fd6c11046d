// r = x + residual
// out = N(r, weight)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct add_rms_norm {
  enum Input { kX, kResidual };
  enum { kInputs = 2, kWeights = 1, kOutputs = 2, kHasScale = 0 };
  enum { kSums = 1, kKeepFirst = 1 };

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values first(Row row) {
    return row.rounded(row.input(kX) + row.input(kResidual));
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Outputs<Values, kOutputs> finish(Row row, Values r) {
    return {{row.norm(r, 0), r}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
