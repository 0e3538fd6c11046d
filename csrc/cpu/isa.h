// The instruction set that PyTorch runs its own CPU kernels with.
#pragma once

#include "kernels.h"

namespace mlxnorm::cpu {

enum class Isa { default_, avx2, avx512 };

// Chosen once; ATEN_CPU_CAPABILITY=default|avx2|avx512 in the environment lowers it.
Isa isa();

}  // namespace mlxnorm::cpu

// The kernel function of that instruction set: MLXNORM_CPU_KERNEL(rms_norm_kernel)(dtype, …).
#ifdef __x86_64__
#define MLXNORM_CPU_KERNEL(function)                                                       \
  (::mlxnorm::cpu::isa() == ::mlxnorm::cpu::Isa::avx512 ? ::mlxnorm::cpu::AVX512::function \
   : ::mlxnorm::cpu::isa() == ::mlxnorm::cpu::Isa::avx2 ? ::mlxnorm::cpu::AVX2::function   \
                                                        : ::mlxnorm::cpu::DEFAULT::function)
#else
#define MLXNORM_CPU_KERNEL(function) (::mlxnorm::cpu::DEFAULT::function)
#endif
