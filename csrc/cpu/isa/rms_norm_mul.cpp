#include "../../../shaders/formulas/rms_norm_mul.h"

#include "kernel.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(rms_norm_mul)
}
