#include "formulas/rms_norm.h"
#include "kernels.h"

INSTANTIATE_KERNELS(rms_norm)
