#include "formulas/rms_norm_modulate.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(rms_norm_modulate)
