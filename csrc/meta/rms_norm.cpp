// mlxnorm::rms_norm on meta and fake tensors: the real checks, and the shape of the result.
#include "../rms_norm.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

namespace mlxnorm::meta {
namespace {

at::Tensor rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps,
                    double weight_offset, std::string_view casting_mode) {
  check_rms_norm(x, weight, eps, weight_offset, casting_mode);
  return at::empty_like(x, at::MemoryFormat::Contiguous);
}

void rms_norm_out(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps,
                  double weight_offset, std::string_view casting_mode, at::Tensor& out) {
  check_rms_norm_out(x, weight, eps, weight_offset, casting_mode, out);
}

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, Meta, m) {
  m.impl("rms_norm", rms_norm);
  m.impl("rms_norm.out", rms_norm_out);
}

}  // namespace mlxnorm::meta
