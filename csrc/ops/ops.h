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

#include <string_view>

namespace mlxnorm {

// Is the argument one of the op's activations, which have one dtype and, but for experts, one
// shape?
template <typename Op>
constexpr bool is_activation(std::string_view argument) {
  for (const std::string_view name : Op::kActivations) {
    if (argument == name) {
      return true;
    }
  }
  return false;
}

}  // namespace mlxnorm
