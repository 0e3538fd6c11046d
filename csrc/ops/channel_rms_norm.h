// silu(x / max(|x|, eps) * sqrt(C) * gamma + bias), or N(x, gamma), over dimension 1 of [N, C, ...]
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct channel_rms_norm {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::channels},
      {"gamma", Role::per_channel, Passing::optional},
      {"bias", Role::per_channel, Passing::defaulted},
  };
  static constexpr ResultSpec kResults[] = {{"out", "x"}};
  static constexpr const char* kEps = "1e-12";
  static constexpr Option kOptions[] = {
      {kForm, kNormalize}, kThenSilu, kWeightOffset, kCastingMode};
};

}  // namespace mlxnorm::ops
