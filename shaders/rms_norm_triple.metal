#include "formulas/rms_norm_triple.h"
#include "kernels.h"

INSTANTIATE_KERNELS(rms_norm_triple)
