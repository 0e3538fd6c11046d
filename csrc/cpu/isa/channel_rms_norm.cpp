#include "../../ops/channel_rms_norm.h"

#include "../../../shaders/formulas/channel_rms_norm.h"
#include "norm_columns.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
MLXNORM_DEFINE_KERNEL_OF_CHANNELS(channel_rms_norm)
}
