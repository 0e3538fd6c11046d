// (residual + N(x, weight)) * scale
#pragma once

#include "../call.h"

namespace mlxnorm::ops {

struct rms_norm_add {
  static constexpr const char* kArguments =
      "Tensor x, Tensor residual, Tensor? weight, "
      "float? eps=1e-6, *, Tensor? scale=None, float weight_offset=0.0, "
      "str casting_mode=\"gemma\", bool round_intermediates=False";
  static constexpr const char* kActivations[] = {"x", "residual"};
  static constexpr const char* kResults[] = {"out"};

  static NormCall check(const at::Tensor& x, const at::Tensor& residual,
                        const OptionalTensor& weight, std::optional<double> eps,
                        const OptionalTensor& scale, double weight_offset,
                        std::string_view casting_mode, bool round_intermediates) {
    return NormCall(Op::rms_norm_add, "x", x)
        .input("residual", residual)
        .weight("weight", weight)
        .scale("scale", scale)
        .options(eps, weight_offset, casting_mode, round_intermediates);
  }
};

}  // namespace mlxnorm::ops
