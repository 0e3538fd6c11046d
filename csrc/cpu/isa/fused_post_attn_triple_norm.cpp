#include "../../ops/fused_post_attn_triple_norm.h"

#include "../../../shaders/formulas/fused_post_attn_triple_norm.h"
#include "norm_rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(fused_post_attn_triple_norm)
}
