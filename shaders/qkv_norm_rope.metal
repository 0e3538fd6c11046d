#include "formulas/qkv_norm_rope.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(qkv_norm_rope)
