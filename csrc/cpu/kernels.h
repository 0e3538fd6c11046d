// The CPU kernels as the rest of the extension sees them. Each instruction set has its own object
// (csrc/cpu/isa/ compiled with that set's flags), so only plain data and function pointers cross
// this boundary: an inline function shared by two objects could be linked from the wrong one.
#pragma once

#include <cstdint>

#include "../../shaders/params.h"
#include "../types.h"

namespace mlxnorm::cpu {

struct RmsNormArguments {
  const void* x;
  const void* weight;  // contiguous, or null
  void* out;           // contiguous
  RowLayout x_rows;
  int64_t dim;
  float eps;
  float weight_offset;
};

// Normalizes rows [begin, end).
using RmsNormKernel = void (*)(const RmsNormArguments& arguments, int64_t begin, int64_t end);

// `streaming`: write past the caches; every row of out must be 64-byte aligned.
#define MLXNORM_DECLARE_KERNELS                                                           \
  RmsNormKernel rms_norm_kernel(DType dtype, WeightType weight, CastingMode casting_mode, \
                                bool streaming);

namespace DEFAULT {
MLXNORM_DECLARE_KERNELS
}
#ifdef __x86_64__
namespace AVX2 {
MLXNORM_DECLARE_KERNELS
}
namespace AVX512 {
MLXNORM_DECLARE_KERNELS
}
#endif

}  // namespace mlxnorm::cpu
