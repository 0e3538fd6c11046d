// The CPU kernels as the rest of the extension sees them. Each instruction set has its own object
// (csrc/cpu/isa/ compiled with that set's flags), so only plain data and function pointers cross
// this boundary: an inline function shared by two objects could be linked from the wrong one.
#pragma once

#include <cstdint>

#include "../types.h"

namespace mlxnorm::cpu {

struct NormArguments {
  const void* inputs[kMaxInputs];
  RowLayout input_rows[kMaxInputs];
  const void* operands[kOperands];  // null when absent
  RowLayout scale_rows;
  RowLayout routing_rows;
  void* outputs[kMaxOutputs];  // contiguous
  uint32_t operand_types;
  bool scale_is_scalar;
  bool streaming;  // write past the caches; every row of the outputs is 64-byte aligned
  int64_t dim;
  int64_t top_k;
  int64_t expert_stride;
  NormOptions options;
  Activation activation;
};

struct NormKernel {
  // Rows [begin, end). `scratch` holds scratch_size(dim) floats when keeps_rows, else it is unused.
  void (*run)(const NormArguments& arguments, int64_t begin, int64_t end, float* scratch);
  bool keeps_rows;
};

constexpr int64_t scratch_size(int64_t dim) {
  constexpr int64_t kLargestBlock = 32;
  return (dim + kLargestBlock - 1) / kLargestBlock * kLargestBlock;
}

#define MLXNORM_DECLARE_KERNEL(op) \
  NormKernel op##_kernel(const NormArguments& arguments, DType dtype);

namespace DEFAULT {
MLXNORM_FOR_EACH_OP(MLXNORM_DECLARE_KERNEL)
}
#ifdef __x86_64__
namespace AVX2 {
MLXNORM_FOR_EACH_OP(MLXNORM_DECLARE_KERNEL)
}
namespace AVX512 {
MLXNORM_FOR_EACH_OP(MLXNORM_DECLARE_KERNEL)
}
#endif
#undef MLXNORM_DECLARE_KERNEL

}  // namespace mlxnorm::cpu
