#include "../../../shaders/formulas/fused_post_ff_norm2_endlayer.h"

#include "kernel.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(fused_post_ff_norm2_endlayer)
}
