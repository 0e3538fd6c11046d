#include "rms_norm.h"

#include "checks.h"

namespace mlxnorm {
namespace {
constexpr const char* kOp = "mlxnorm::rms_norm";
}

RmsNormOptions check_rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                              double eps, double weight_offset, std::string_view casting_mode) {
  check_activation(kOp, {"x", x});
  check_weight(kOp, "weight", weight, {"x", x});
  // Adding -0.0 changes no weight; adding 0.0 would turn a weight of -0.0 into 0.0.
  const float offset = weight_offset == 0.0 ? -0.0f : float(weight_offset);
  return {float(eps), offset, parse_casting_mode(kOp, casting_mode)};
}

RmsNormOptions check_rms_norm_out(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                                  double eps, double weight_offset, std::string_view casting_mode,
                                  const at::Tensor& out) {
  const RmsNormOptions options = check_rms_norm(x, weight, eps, weight_offset, casting_mode);
  check_out(kOp, {"out", out}, {"x", x});
  check_no_overlap(kOp, {"out", out}, {"x", x}, /*allow_same=*/true);
  if (weight.has_value()) {
    check_no_overlap(kOp, {"out", out}, {"weight", *weight}, /*allow_same=*/false);
  }
  return options;
}

}  // namespace mlxnorm
