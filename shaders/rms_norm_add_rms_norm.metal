#include "formulas/rms_norm_add_rms_norm.h"
#include "kernels.h"

INSTANTIATE_KERNELS(rms_norm_add_rms_norm)
