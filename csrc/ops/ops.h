// All ops: schema, and the checks that make a NormCall of the arguments.
#pragma once

#include "add_rms_norm.h"
#include "fused_moe_wsum_post_ff_norm2_endlayer.h"
#include "fused_post_attn_triple_norm.h"
#include "fused_post_ff_norm2_endlayer.h"
#include "rms_norm.h"
#include "rms_norm_add.h"
#include "rms_norm_add_rms_norm.h"
#include "rms_norm_mul.h"
#include "rms_norm_triple.h"
