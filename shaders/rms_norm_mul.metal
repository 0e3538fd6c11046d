#include "formulas/rms_norm_mul.h"
#include "kernels.h"

INSTANTIATE_KERNELS(rms_norm_mul)
