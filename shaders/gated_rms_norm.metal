#include "formulas/gated_rms_norm.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(gated_rms_norm)
