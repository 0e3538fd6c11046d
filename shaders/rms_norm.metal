#include "formulas/rms_norm.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(rms_norm)
