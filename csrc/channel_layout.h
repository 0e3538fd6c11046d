// The tensors of a call that normalizes channels, [N, C, ...], as a kernel addresses them: rows of
// channels that are neighbours in memory, or columns of channels that lie a step apart.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>

#include "row_layout.h"

namespace mlxnorm {

// Borrows what the call borrows, x and out.
struct LaidOutChannels {
  LaidOutChannels(const NormCall& call, const at::Tensor& x, const at::Tensor& out);
  LaidOutChannels(const LaidOutChannels&) = delete;  // it points to copies of its own

  NormLayout layout{};
  TensorPointers tensors{};
  const at::Tensor* out;
  bool fits = false;  // else x and out cannot be addressed so

  bool has_copies() const { return copied_; }

 private:
  at::Tensor copies_[kMaxTensors];  // of operands
  bool copied_ = false;
};

// Calls `kernel` once, unless there is nothing to do.
//
// A tensor whose memory is neither is copied: an x into out, where it is then normalized, so that
// no memory is needed; for an out there is a contiguous tensor, of which it becomes a copy.
void run_channels(const NormCall& call, const at::Tensor& out,
                  c10::function_ref<void(const LaidOutChannels&)> kernel);

}  // namespace mlxnorm
