// Vocabulary shared by checks, CPU kernels and Metal host code. Free of PyTorch.
#pragma once

#include <cstdint>

#include "../shaders/abi.h"

namespace mlxnorm {

// The ops, in the order of the README. Their tables are in ops/, and what else has to exist for
// every op is listed in docs/design.md.
// clang-format off
#define MLXNORM_FOR_EACH_OP(apply)                                                        \
  apply(rms_norm)                                                                         \
  apply(rms_norm_mul)                                                                     \
  apply(rms_norm_modulate)                                                                \
  apply(gated_rms_norm)                                                                   \
  apply(channel_rms_norm)                                                                 \
  apply(rms_norm_rope)                                                                    \
  apply(qk_norm_rope)                                                                     \
  apply(qkv_norm_rope)                                                                    \
  apply(rms_norm_triple)                                                                  \
  apply(add_rms_norm)                                                                     \
  apply(rms_norm_add)                                                                     \
  apply(rms_norm_add_rms_norm)                                                            \
  apply(fused_post_attn_triple_norm)                                                      \
  apply(fused_post_ff_norm2_endlayer)                                                     \
  apply(fused_moe_wsum_post_ff_norm2_endlayer)
// clang-format on

enum class Op {
#define MLXNORM_OP_ID(op) op,
  MLXNORM_FOR_EACH_OP(MLXNORM_OP_ID)
#undef MLXNORM_OP_ID
};

constexpr const char* qualified_name(Op op) {
  switch (op) {
#define MLXNORM_QUALIFIED_NAME(op) \
  case Op::op:                     \
    return "mlxnorm::" #op;
    MLXNORM_FOR_EACH_OP(MLXNORM_QUALIFIED_NAME)
#undef MLXNORM_QUALIFIED_NAME
  }
  return nullptr;
}

// Without the namespace: as schemas, the Metal library and its functions have it.
constexpr const char* op_name(Op op) {
  return qualified_name(op) + sizeof("mlxnorm::") - 1;
}

enum class DType { float32, float16, bfloat16 };
constexpr int kDTypes = 3;

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::float32 ? 4 : 2;
}

constexpr TensorType tensor_type_of(DType dtype) {
  return dtype == DType::float32 ? kFloat32 : dtype == DType::float16 ? kFloat16 : kBFloat16;
}

struct NormOptions {
  float eps;
  uint32_t choices = 0;  // see choice_in
  float numbers[kNumbers] = {};
};

// Where the tensors of a call lie in memory, and of which type they are, but for their addresses.
// Tensors and results are numbered as in the op's table.
struct NormLayout {
  DType dtype;                // of inputs, and of results but for those like a residual
  uint32_t tensor_types = 0;  // see tensor_type
  uint32_t result_types = 0;
  uint32_t scalars = 0;  // a bit for each tensor that has one element for all
  int64_t rows;          // of every result
  int64_t dim;
  int64_t heads = 1;    // that a row consists of
  int64_t rotated = 0;  // elements, the first ones of a head
  int64_t top_k = 0;    // of experts, if there are some
  RowLayout tensors[kMaxTensors];
  RowLayout results[kMaxResults];
  int64_t steps[kMaxTensors] =
      {};                   // elements from one expert, head or channel of a row to the next
  int64_t result_step = 0;  // of channels
  // Where the elements of a row, channels, are not neighbours in memory, so many rows are: a line.
  // Then `rows` are lines, the layouts say where these begin, and steps are those of channels.
  int64_t line = 0;
  float root_dim = 0.0f;  // of channels: the square root of dim
};

// The rows of a contiguous tensor, or with a stride of 0 one row that all share.
constexpr RowLayout evenly_spaced(int64_t stride) {
  return {stride, 0, 0, 1, 1};
}
constexpr bool is_one_row(const RowLayout& rows) {
  return rows.stride0 == 0 && rows.stride1 == 0 && rows.stride2 == 0;
}

}  // namespace mlxnorm
