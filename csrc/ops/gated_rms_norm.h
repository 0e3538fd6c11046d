// N(x * activation(gate), weight) + bias or (N(x, weight) + bias) * activation(gate)
#pragma once

#include "table.h"

namespace mlxnorm::ops {

struct gated_rms_norm {
  static constexpr TensorSpec kTensors[] = {
      {"x", Role::input},
      {"gate", Role::input},
      {"weight", Role::weight, Passing::optional},
      {"bias", Role::bias, Passing::extra},
  };
  static constexpr ResultSpec kResults[] = {{"out", "x"}};
  static constexpr Option kOptions[] = {kNormBeforeGate, kGroupSize,   {kActivation, kSilu},
                                        kWeightOffset,   kCastingMode, kRoundIntermediates};
};

}  // namespace mlxnorm::ops
