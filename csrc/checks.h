// Argument checks shared by all ops and all devices. Every failed check raises before anything is
// allocated or dispatched, and reads "mlxnorm::OP: ARGUMENT must …, got …".
//
// Sizes are compared as SymInts, so the same checks run on fake tensors under torch.compile.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "types.h"

namespace mlxnorm {

// Tensor with its argument name, as the error messages need it. Borrows both.
struct Argument {
  Argument() = default;
  Argument(const char* name, const at::Tensor& tensor) : name(name), tensor(&tensor) {}

  explicit operator bool() const { return tensor != nullptr; }

  const char* name = nullptr;
  const at::Tensor* tensor = nullptr;
};

// float32, float16 or bfloat16.
inline bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

// x: float32, float16 or bfloat16, [..., dim] with dim > 0.
void check_activation(Op op, const Argument& x);

// [..., top_k, dim] with top_k > 0, beyond check_activation.
void check_experts(Op op, const Argument& experts);

// Another activation or a result: dtype, device and shape of x.
void check_like(Op op, const Argument& argument, const Argument& x);

// The same beside experts [..., top_k, dim]: [..., dim].
void check_like_experts(Op op, const Argument& argument, const Argument& experts);

// [dim] on x's device. Operands are float32, float16 or bfloat16, whatever x is.
void check_weight(Op op, const Argument& weight, const Argument& x);

// One element or [1, …, 1, dim], on x's device.
void check_scale(Op op, const Argument& scale, const Argument& x);

// x's shape, or what check_scale allows.
void check_elementwise_scale(Op op, const Argument& scale, const Argument& x);

// [..., top_k] on the device of the experts.
void check_routing_weights(Op op, const Argument& weights, const Argument& experts);

// Beyond check_like.
void check_contiguous(Op op, const Argument& out);

// `op` is the qualified name. out may be exactly `other` when `allow_same`, else it shares no
// memory with it.
void check_no_overlap(const char* op, const Argument& out, const Argument& other, bool allow_same);

// No longer than the kernels of a device can count.
void check_max_dim(Op op, const Argument& x, int64_t max_dim);
void check_max_top_k(Op op, const Argument& experts, int64_t max_top_k);

CastingMode parse_casting_mode(Op op, std::string_view casting_mode);
Activation parse_activation(Op op, std::string_view activation);

}  // namespace mlxnorm
