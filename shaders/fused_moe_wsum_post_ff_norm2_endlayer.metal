#include "formulas/fused_moe_wsum_post_ff_norm2_endlayer.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(fused_moe_wsum_post_ff_norm2_endlayer)
