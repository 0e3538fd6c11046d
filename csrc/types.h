// Vocabulary shared by checks, CPU kernels and Metal host code. Free of PyTorch.
#pragma once

#include <cstdint>

#include "../shaders/params.h"

namespace mlxnorm {

// The ops, in the order of the README. One list: what has to exist for every op is made from it.
#define MLXNORM_FOR_EACH_OP(apply)                                                        \
  apply(rms_norm) apply(rms_norm_mul) apply(rms_norm_triple) apply(add_rms_norm)          \
      apply(rms_norm_add) apply(rms_norm_add_rms_norm) apply(fused_post_attn_triple_norm) \
          apply(fused_post_ff_norm2_endlayer) apply(fused_moe_wsum_post_ff_norm2_endlayer)

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

// Without the namespace: names the Metal library and its functions.
constexpr const char* name_of(Op op) {
  return qualified_name(op) + sizeof("mlxnorm::") - 1;
}

enum class DType { float32, float16, bfloat16 };

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::float32 ? 4 : 2;
}

constexpr OperandType operand_type_of(DType dtype) {
  return dtype == DType::float32 ? kFloat32 : dtype == DType::float16 ? kFloat16 : kBFloat16;
}

enum class CastingMode {
  gemma,  // multiply by the weight in float32, round once
  llama,  // round the normalized value, multiply by the weight, round again
};

struct NormOptions {
  float eps;
  float weight_offset;
  CastingMode casting_mode;
  bool round_intermediates;
};

}  // namespace mlxnorm
