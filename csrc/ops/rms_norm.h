// N(x, weight)
#pragma once

#include "../call.h"

namespace mlxnorm::ops {

struct rms_norm {
  static constexpr const char* kArguments =
      "Tensor x, Tensor? weight, "
      "float? eps=1e-6, *, float weight_offset=0.0, "
      "str casting_mode=\"gemma\"";
  static constexpr const char* kActivations[] = {"x"};
  static constexpr const char* kResults[] = {"out"};

  static NormCall check(const at::Tensor& x, const OptionalTensor& weight,
                        std::optional<double> eps, double weight_offset,
                        std::string_view casting_mode) {
    return NormCall(Op::rms_norm, "x", x)
        .weight("weight", weight)
        .options(eps, weight_offset, casting_mode);
  }
};

}  // namespace mlxnorm::ops
