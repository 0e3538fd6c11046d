// N(x, weight) * (scale_offset + scale) + shift
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct rms_norm_modulate {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"weight", Role::weight, Passing::optional},
      {"scale", Role::scale},
      {"shift", Role::scale, Passing::defaulted},
  };
  static constexpr ResultSpec kResults[] = {{"out", "x"}};
  static constexpr Option kOptions[] = {kScaleOffset, kModulation, kWeightOffset, kCastingMode,
                                        kRoundIntermediates};
};

}  // namespace mlxnorm::ops
