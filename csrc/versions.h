// Results that are written into given tensors change their version, by which autograd notices that
// a tensor it has saved is no longer what it was.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

namespace mlxnorm {

// As PyTorch's own ops refuse it, but before anything is written. `op` is the qualified name.
inline void check_may_be_written(const char* op, const char* name, const at::Tensor& out) {
  TORCH_CHECK(!out.is_inference() || c10::InferenceMode::is_enabled(), op, ": ", name,
              " is an inference tensor: inplace update to inference tensor outside InferenceMode "
              "is not allowed; make a clone to get a normal tensor before");
}

inline void bump_version(const at::Tensor& out) {
  if (!out.is_inference()) {
    out.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace mlxnorm
