#include "formulas/rms_norm_add.h"
#include "kernels.h"

INSTANTIATE_KERNELS(rms_norm_add)
