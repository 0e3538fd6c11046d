// out = (residual + N(x, weight)) * scale
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_add {
  enum Input { kX, kResidual };
  enum { kInputs = 2, kWeights = 1, kOutputs = 1, kHasScale = 1 };
  enum { kSums = 1, kKeepFirst = 0 };

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values first(Row row) {
    return row.input(kX);
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Outputs<Values, kOutputs> finish(Row row, Values x) {
    return {{row.scaled(input_plus_norm(row, kResidual, x, 0))}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
