// The tensors of a call as a kernel addresses them: rows of a last dimension with stride 1, where
// they are or, where they cannot be described so, in a contiguous copy.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/MaybeOwned.h>

#include "call.h"

namespace mlxnorm {

DType dtype_of(at::ScalarType type);

struct Rows {
  c10::MaybeOwned<at::Tensor> tensor;  // null when absent
  RowLayout layout{0, 0, 0, 1, 1};     // one row for all
};

// Borrows what the call borrows.
struct RowsOfCall {
  explicit RowsOfCall(const NormCall& call);

  int64_t count;  // of the results
  int64_t dim;
  int64_t top_k = 0;
  int64_t expert_stride = 0;
  DType dtype;
  uint32_t operand_types = 0;
  bool scale_is_scalar = false;
  Rows inputs[kMaxInputs];
  Rows operands[kOperands];  // a weight has one row, read for all
};

}  // namespace mlxnorm
