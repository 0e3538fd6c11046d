#include "../../ops/rms_norm_modulate.h"

#include "../../../shaders/formulas/rms_norm_modulate.h"
#include "norm_rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL(rms_norm_modulate)
}
