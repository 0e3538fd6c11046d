#include "formulas/channel_rms_norm.h"
#include "column_kernels.h"

INSTANTIATE_KERNELS(channel_rms_norm)
INSTANTIATE_COLUMN_KERNELS(channel_rms_norm)
