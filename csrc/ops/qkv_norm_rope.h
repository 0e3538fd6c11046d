// rms_norm_rope of queries and of keys, and the norm of values without a weight
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct qkv_norm_rope {
  static constexpr TensorSpec kTensors[] = {
      {"q", Role::input},
      {"k", Role::input},
      {"v", Role::input},
      {"q_weight", Role::weight, Passing::optional},
      {"k_weight", Role::weight, Passing::optional},
      {"cos", Role::angles},
      {"sin", Role::angles},
  };
  static constexpr ResultSpec kResults[] = {{"q_out", "q"}, {"k_out", "k"}, {"v_out", "v"}};
  static constexpr auto& kOptions = kRopeOptions;
  static constexpr Op kSegmentOp = Op::rms_norm_rope;
  static constexpr const char* kSegments[][4] = {
      {"q", "q_weight", "cos", "sin"},
      {"k", "k_weight", "cos", "sin"},
      {"v", nullptr, nullptr, nullptr},
  };
};

}  // namespace mlxnorm::ops
