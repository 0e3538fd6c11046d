// The tensors of a call as a kernel addresses them: rows of a last dimension with stride 1, where
// they are or, where they cannot be described so, in a contiguous copy.
#pragma once

#include <ATen/core/Tensor.h>

#include "call.h"
#include "strides.h"

namespace mlxnorm {

DType dtype_of(at::ScalarType type);

// By number; null where there is none.
using TensorPointers = const at::Tensor* [kMaxTensors];

// Borrows what the call borrows.
struct LaidOutCall {
  LaidOutCall(const NormCall& call, const at::Tensor* const* outs);

  NormLayout layout{};
  TensorPointers tensors{};

 private:
  // Tensor t, expanded to the leading dimensions of the results. Of groups, each is a row.
  void lay_out(size_t t, const Argument& argument, at::IntArrayRef leading, Groups groups);

  at::Tensor copies_[kMaxTensors];
};

}  // namespace mlxnorm
