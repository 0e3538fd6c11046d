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

// Those of a segment that its layout has, by its own numbers.
void select_tensors(const Segment& segment, const NormLayout& layout, const TensorPointers& all,
                    TensorPointers& selected);

// One segment of a call, of which it numbers the tensors and results. Borrows what the call
// borrows; outs are those of all segments.
struct LaidOutCall {
  LaidOutCall(const NormCall& call, const at::Tensor* const* outs, size_t segment = 0);

  NormLayout layout{};
  TensorPointers tensors{};

  bool has_copies() const { return copied_; }

 private:
  // Tensor t, whose last `inner` dimensions are a row's, expanded to the leading dimensions of the
  // results. Of groups, each is a row.
  void lay_out(size_t t, const Argument& argument, int64_t inner, at::IntArrayRef leading,
               Groups groups);

  at::Tensor copies_[kMaxTensors];
  bool copied_ = false;
};

}  // namespace mlxnorm
