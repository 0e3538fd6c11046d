#include "formulas/fused_post_attn_triple_norm.h"
#include "norm_kernels.h"

INSTANTIATE_KERNELS(fused_post_attn_triple_norm)
