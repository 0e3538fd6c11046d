#include "formulas/fused_post_ff_norm2_endlayer.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(fused_post_ff_norm2_endlayer)
