#include "../../ops/add_rms_norm.h"

#include "../../../shaders/formulas/add_rms_norm.h"
#include "norm_rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(add_rms_norm)
}
