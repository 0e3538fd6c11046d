// Three norms of x, which is read once.
#pragma once

#include "../call.h"

namespace mlxnorm::ops {

struct rms_norm_triple {
  static constexpr const char* kArguments =
      "Tensor x, Tensor? weight_a, Tensor? weight_b, Tensor? weight_c, "
      "float? eps=1e-6, *, float weight_offset=0.0, "
      "str casting_mode=\"gemma\"";
  static constexpr const char* kActivations[] = {"x"};
  static constexpr const char* kResults[] = {"out_a", "out_b", "out_c"};

  static NormCall check(const at::Tensor& x, const OptionalTensor& weight_a,
                        const OptionalTensor& weight_b, const OptionalTensor& weight_c,
                        std::optional<double> eps, double weight_offset,
                        std::string_view casting_mode) {
    return NormCall(Op::rms_norm_triple, "x", x)
        .weight("weight_a", weight_a)
        .weight("weight_b", weight_b)
        .weight("weight_c", weight_c)
        .options(eps, weight_offset, casting_mode);
  }
};

}  // namespace mlxnorm::ops
