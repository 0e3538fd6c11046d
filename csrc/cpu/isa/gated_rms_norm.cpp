#include "../../ops/gated_rms_norm.h"

#include "../../../shaders/formulas/gated_rms_norm.h"
#include "norm_rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(gated_rms_norm)
}
