#include "formulas/rms_norm_rope.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(rms_norm_rope)
