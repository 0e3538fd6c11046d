#include "formulas/fused_moe_wsum_post_ff_norm2_endlayer.h"
#include "kernels.h"

INSTANTIATE_KERNELS(fused_moe_wsum_post_ff_norm2_endlayer)
