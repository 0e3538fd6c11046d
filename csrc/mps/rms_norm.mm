// mlxnorm::rms_norm on MPS tensors: shaders/rms_norm.metal on PyTorch's command encoder.
#include "../rms_norm.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "../rows.h"
#include "metal.h"

namespace mlxnorm::mps {
namespace {

void run(const at::Tensor& x, const std::optional<at::Tensor>& weight,
         const RmsNormOptions& options, const at::Tensor& out) {
  if (x.numel() == 0) {
    return;
  }
  // Copies, where needed at all, are encoded before ours.
  const Rows rows = rows_of(x);
  const auto contiguous_weight = contiguous_or_none(weight);
  const bool has_weight = weight.has_value();
  const DType dtype = dtype_of(x);

  const bool aligned = rows_aligned(rows.layout, byte_offset(*rows.tensor), dtype) &&
                       byte_offset(out) % kWordBytes == 0 &&
                       (!has_weight || byte_offset(*contiguous_weight) % kWordBytes == 0);
  const Plan plan = plan_rows(dtype, rows.count, rows.dim, aligned, kernel_choice());
  id<MTLComputePipelineState> state = pipeline({"rms_norm", plan, dtype, weight_type(x, weight),
                                                options.casting_mode == CastingMode::llama});

  RmsNormParams params{};
  params.x_rows = rows.layout;
  params.dim = uint32_t(rows.dim);
  params.inverse_dim = 1.0f / float(rows.dim);
  params.eps = options.eps;
  params.weight_offset = options.weight_offset;
  encode([&](id<MTLComputeCommandEncoder> encoder) {
    [encoder setComputePipelineState:state];
    set_tensor(encoder, *rows.tensor, kRmsNormX);
    // A buffer that the kernel does not read must be bound all the same.
    set_tensor(encoder, has_weight ? *contiguous_weight : *rows.tensor, kRmsNormWeight);
    set_tensor(encoder, out, kRmsNormOut);
    for (const Dispatch& dispatch : dispatches(plan, rows.count)) {
      params.first_row = dispatch.first_row;
      params.rows = dispatch.rows;
      [encoder setBytes:&params length:sizeof(params) atIndex:kRmsNormParams];
      [encoder dispatchThreadgroups:MTLSizeMake(dispatch.threadgroups, 1, 1)
              threadsPerThreadgroup:MTLSizeMake(plan.threads, 1, 1)];
    }
  });
}

at::Tensor rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps,
                    double weight_offset, std::string_view casting_mode) {
  const RmsNormOptions options = check_rms_norm(x, weight, eps, weight_offset, casting_mode);
  check_max_dim("mlxnorm::rms_norm", {"x", x}, kMaxDim);
  at::Tensor out = at::empty(x.sizes(), x.options());
  run(x, weight, options, out);
  return out;
}

void rms_norm_out(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps,
                  double weight_offset, std::string_view casting_mode, at::Tensor& out) {
  const RmsNormOptions options =
      check_rms_norm_out(x, weight, eps, weight_offset, casting_mode, out);
  check_max_dim("mlxnorm::rms_norm", {"x", x}, kMaxDim);
  run(x, weight, options, out);
}

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, MPS, m) {
  m.impl("rms_norm", rms_norm);
  m.impl("rms_norm.out", rms_norm_out);
}

}  // namespace mlxnorm::mps
