// Argument checks shared by all ops and all devices. Every failed check raises before anything is
// allocated or dispatched, and reads "mlxnorm::OP: ARGUMENT must …, got …".
//
// Sizes are compared as SymInts, so the same checks run on fake tensors under torch.compile.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "ops/table.h"

namespace mlxnorm {

// A tensor with its argument's name, as the error messages need it. Borrows both.
struct Argument {
  Argument() = default;
  Argument(const char* name, const at::Tensor& tensor, Role role = Role::input)
      : name(name), tensor(&tensor), role(role) {}

  explicit operator bool() const { return tensor != nullptr; }

  const char* name = nullptr;
  const at::Tensor* tensor = nullptr;
  Role role = Role::input;
};

// `op` is the qualified name, here and below.

// float32, float16 or bfloat16.
inline bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

// The rule of the argument's role. Others are compared with the first one of their segment, so that
// is checked before them: float32, float16 or bfloat16, with a last dimension that is not empty.
void check_tensor(const char* op, const Argument& argument, const Argument& first,
                  bool across_heads);

// The first tensors of two segments: one of their dimensions, that of heads, may differ.
void check_beside(const char* op, const Argument& x, const Argument& first);

// Tables of angles for all of a row or its front: half as many as elements, or `full`, as tables
// wider than half a row always are. `like` is the first of them. Gives whether they are full.
bool check_angles(const char* op, const Argument& angles, const Argument& like, const Argument& x,
                  bool full);

// dtype, device and shape that a result has which is like that tensor; rows that a kernel can
// write, each element once.
void check_out(const char* op, const Argument& out, const Argument& like, int64_t group_size,
               bool across_heads);

// Rows of x consist of whole groups, if there are some.
void check_group_size(const char* op, int64_t group_size, const Argument& x);

// out may be exactly `other` when `allow_same`, else it shares no memory with it.
void check_no_overlap(const char* op, const Argument& out, const Argument& other, bool allow_same);

// No longer than the kernels of a device can count.
void check_max_dim(const char* op, const Argument& x, bool across_heads, int64_t max_dim,
                   c10::Device device);
void check_max_top_k(const char* op, const Argument& experts, int64_t max_top_k,
                     c10::Device device);

// A choice by the name of its value.
uint32_t parse_choice(const char* op, Choice which, std::string_view value);

}  // namespace mlxnorm
