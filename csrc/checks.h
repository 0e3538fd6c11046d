// Argument checks shared by all ops and all devices. Every failed check raises before anything is
// allocated or dispatched, and reads "mlxnorm::OP: ARGUMENT must …, got …".
//
// Sizes are compared as SymInts, so the same checks run on fake tensors under torch.compile.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "types.h"

namespace mlxnorm {

// Tensor with its argument name, as the error messages need it.
struct Argument {
  const char* name;
  const at::Tensor& tensor;
};

// x: float32, float16 or bfloat16, [..., dim] with dim > 0.
void check_activation(const char* op, const Argument& x);

// x's last dimension: no longer than the kernels of a device can count.
void check_max_dim(const char* op, const Argument& x, int64_t max_dim);

// weight: None, or [dim] on x's device with x's dtype or float32.
void check_weight(const char* op, const char* name, const std::optional<at::Tensor>& weight,
                  const Argument& x);

// out: x's shape, dtype and device, contiguous.
void check_out(const char* op, const Argument& out, const Argument& x);

// out may be exactly `input` when `allow_same`, else it shares no memory with it.
void check_no_overlap(const char* op, const Argument& out, const Argument& input, bool allow_same);

CastingMode parse_casting_mode(const char* op, std::string_view casting_mode);

// Of an activation that passed check_activation.
DType dtype_of(const at::Tensor& x);
WeightType weight_type(const at::Tensor& x, const std::optional<at::Tensor>& weight);

}  // namespace mlxnorm
