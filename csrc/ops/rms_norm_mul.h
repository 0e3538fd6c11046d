// N(x, weight) * activation(scale)
#pragma once

#include "../call.h"

namespace mlxnorm::ops {

struct rms_norm_mul {
  static constexpr const char* kArguments =
      "Tensor x, Tensor? weight, Tensor scale, "
      "float? eps=1e-6, *, str activation=\"none\", float weight_offset=0.0, "
      "str casting_mode=\"gemma\", bool round_intermediates=False";
  static constexpr const char* kActivations[] = {"x"};
  static constexpr const char* kResults[] = {"out"};

  static NormCall check(const at::Tensor& x, const OptionalTensor& weight, const at::Tensor& scale,
                        std::optional<double> eps, std::string_view activation,
                        double weight_offset, std::string_view casting_mode,
                        bool round_intermediates) {
    return NormCall(Op::rms_norm_mul, "x", x)
        .weight("weight", weight)
        .elementwise_scale("scale", scale)
        .activation(activation)
        .options(eps, weight_offset, casting_mode, round_intermediates);
  }
};

}  // namespace mlxnorm::ops
