#include "../../../shaders/formulas/rms_norm_triple.h"

#include "kernel.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(rms_norm_triple)
}
