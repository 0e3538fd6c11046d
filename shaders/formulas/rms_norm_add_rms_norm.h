// r = (residual + N(x, weight)) * scale
// out = N(r, next_weight)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_add_rms_norm {
  enum Input { kX, kResidual };
  enum Weight { kWeight, kNextWeight };
  enum { kInputs = 2, kWeights = 2, kOutputs = 2, kHasScale = 1 };
  enum { kSums = 2, kKeepFirst = 0 };

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values first(Row row) {
    return row.input(kX);
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values second(Row row, Values x) {
    return row.rounded(row.scaled(input_plus_norm(row, kResidual, x, kWeight)));
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Outputs<Values, kOutputs> finish(Row row, Values r) {
    return {{r, row.norm(r, kNextWeight)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
