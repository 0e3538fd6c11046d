#include "formulas/rms_norm_add_rms_norm.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(rms_norm_add_rms_norm)
