#include "formulas/rms_norm_add.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(rms_norm_add)
