#include "../../../shaders/formulas/fused_post_attn_triple_norm.h"

#include "kernel.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(fused_post_attn_triple_norm)
}
