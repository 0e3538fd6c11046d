#include "formulas/add_rms_norm.h"
#include "kernels.h"

INSTANTIATE_KERNELS(add_rms_norm)
