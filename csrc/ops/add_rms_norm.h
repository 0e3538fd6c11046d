// (N(r, weight), r) with r = x + residual
#pragma once

#include "../call.h"

namespace mlxnorm::ops {

struct add_rms_norm {
  static constexpr const char* kArguments =
      "Tensor x, Tensor residual, Tensor? weight, "
      "float? eps=1e-6, *, float weight_offset=0.0, "
      "str casting_mode=\"gemma\", bool round_intermediates=False";
  static constexpr const char* kActivations[] = {"x", "residual"};
  static constexpr const char* kResults[] = {"out", "residual_out"};

  static NormCall check(const at::Tensor& x, const at::Tensor& residual,
                        const OptionalTensor& weight, std::optional<double> eps,
                        double weight_offset, std::string_view casting_mode,
                        bool round_intermediates) {
    return NormCall(Op::add_rms_norm, "x", x)
        .input("residual", residual)
        .weight("weight", weight)
        .options(eps, weight_offset, casting_mode, round_intermediates);
  }
};

}  // namespace mlxnorm::ops
