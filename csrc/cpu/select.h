// The kernels of the instruction set that PyTorch runs its own CPU kernels with.
#pragma once

#include "arguments.h"

namespace mlxnorm::cpu {

// The set is chosen once; ATEN_CPU_CAPABILITY=default|avx2|avx512 in the environment lowers it.
NormKernel select_kernel(Op op, const NormArguments& arguments);

}  // namespace mlxnorm::cpu
