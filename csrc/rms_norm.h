// mlxnorm::rms_norm, the argument checks that CPU, MPS and meta share.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "types.h"

namespace mlxnorm {

RmsNormOptions check_rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                              double eps, double weight_offset, std::string_view casting_mode);

RmsNormOptions check_rms_norm_out(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                                  double eps, double weight_offset, std::string_view casting_mode,
                                  const at::Tensor& out);

}  // namespace mlxnorm
