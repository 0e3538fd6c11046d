// mlxnorm::rms_norm on CPU tensors.
#include "../rms_norm.h"

#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include "../checks.h"
#include "../rows.h"
#include "isa.h"
#include "parallel.h"

namespace mlxnorm::cpu {
namespace {

void run(const at::Tensor& x, const std::optional<at::Tensor>& weight,
         const RmsNormOptions& options, const at::Tensor& out) {
  if (x.numel() == 0) {
    return;
  }
  const Rows rows = rows_of(x);
  const auto contiguous_weight = contiguous_or_none(weight);
  const RmsNormArguments arguments{
      rows.tensor->const_data_ptr(),
      weight.has_value() ? contiguous_weight->const_data_ptr() : nullptr,
      out.mutable_data_ptr(),
      rows.layout,
      rows.dim,
      options.eps,
      options.weight_offset,
  };
  const RmsNormKernel kernel = MLXNORM_CPU_KERNEL(rms_norm_kernel)(
      dtype_of(x), weight_type(x, weight), options.casting_mode, worth_streaming(out, rows.dim));
  parallel_rows(rows.count, rows.dim,
                [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
}

at::Tensor rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps,
                    double weight_offset, std::string_view casting_mode) {
  const RmsNormOptions options = check_rms_norm(x, weight, eps, weight_offset, casting_mode);
  at::Tensor out = at::detail::empty_cpu(x.sizes(), x.options());
  run(x, weight, options, out);
  return out;
}

void rms_norm_out(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps,
                  double weight_offset, std::string_view casting_mode, at::Tensor& out) {
  run(x, weight, check_rms_norm_out(x, weight, eps, weight_offset, casting_mode, out), out);
}

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, CPU, m) {
  m.impl("rms_norm", rms_norm);
  m.impl("rms_norm.out", rms_norm_out);
}

}  // namespace mlxnorm::cpu
