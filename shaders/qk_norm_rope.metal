#include "formulas/qk_norm_rope.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(qk_norm_rope)
