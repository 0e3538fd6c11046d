#include "../../ops/rms_norm_rope.h"

#include "../../../shaders/formulas/rms_norm_rope.h"
#include "norm_rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(rms_norm_rope)
}
