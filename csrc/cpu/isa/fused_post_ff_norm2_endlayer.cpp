#include "../../ops/fused_post_ff_norm2_endlayer.h"

#include "../../../shaders/formulas/fused_post_ff_norm2_endlayer.h"
#include "norm_rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(fused_post_ff_norm2_endlayer)
}
