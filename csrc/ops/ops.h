// The tables of all ops.
#pragma once

#include "add_rms_norm.h"
#include "channel_rms_norm.h"
#include "fused_moe_wsum_post_ff_norm2_endlayer.h"
#include "fused_post_attn_triple_norm.h"
#include "fused_post_ff_norm2_endlayer.h"
#include "gated_rms_norm.h"
#include "qk_norm_rope.h"
#include "qkv_norm_rope.h"
#include "rms_norm.h"
#include "rms_norm_add.h"
#include "rms_norm_add_rms_norm.h"
#include "rms_norm_modulate.h"
#include "rms_norm_mul.h"
#include "rms_norm_rope.h"
#include "rms_norm_triple.h"

namespace mlxnorm {

// By Op.
inline constexpr OpTable kOps[] = {
#define MLXNORM_TABLE(op) table_of<ops::op>(Op::op),
    MLXNORM_FOR_EACH_OP(MLXNORM_TABLE)
#undef MLXNORM_TABLE
};

constexpr const OpTable& table_of(Op op) {
  return kOps[size_t(op)];
}

}  // namespace mlxnorm
