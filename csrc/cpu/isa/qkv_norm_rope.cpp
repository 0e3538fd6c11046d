#include "../../ops/qkv_norm_rope.h"

#include "../../../shaders/formulas/qkv_norm_rope.h"
#include "norm_rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_SEGMENTS(qkv_norm_rope, rms_norm_rope)
}
