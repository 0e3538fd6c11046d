// out_a = N(x, weight_a)
// out_b = N(x, weight_b)
// out_c = N(x, weight_c)
#pragma once

#include "formula.h"

namespace mlxnorm {
namespace formula {

struct rms_norm_triple {
  enum { kInputs = 1, kWeights = 3, kOutputs = 3, kHasScale = 0 };
  enum { kSums = 1, kKeepFirst = 0 };

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values first(Row row) {
    return row.input(0);
  }

  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Outputs<Values, kOutputs> finish(Row row, Values x) {
    return {{row.norm(x, 0), row.norm(x, 1), row.norm(x, 2)}};
  }
};

}  // namespace formula
}  // namespace mlxnorm
