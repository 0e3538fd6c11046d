#include "formulas/add_rms_norm.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(add_rms_norm)
