// CPU tensors.
#include <ATen/EmptyTensor.h>

#include <memory>

#include "../kernels.h"
#include "../record.h"
#include "../rows.h"
#include "isa.h"
#include "parallel.h"

namespace mlxnorm::cpu {
namespace {

void run_kernel(const NormKernel& kernel, const NormArguments& arguments, int64_t rows) {
  parallel_rows(rows, arguments.dim, [&](int64_t begin, int64_t end) {
    std::unique_ptr<float[]> scratch;
    if (kernel.keeps_rows) {
      scratch.reset(new float[scratch_size(arguments.dim)]);
    }
    kernel.run(arguments, begin, end, scratch.get());
  });
}

void run_call(const NormCall& call, const at::Tensor* const* outs, int out_count) {
  const RowsOfCall rows(call);
  NormArguments arguments{};
  for (int i = 0; i < kMaxInputs && call.input(i); ++i) {
    arguments.inputs[i] = rows.inputs[i].tensor->const_data_ptr();
    arguments.input_rows[i] = rows.inputs[i].layout;
  }
  for (int i = 0; i < kOperands; ++i) {
    if (call.operand(i)) {
      arguments.operands[i] = rows.operands[i].tensor->const_data_ptr();
    }
  }
  for (int i = 0; i < out_count; ++i) {
    arguments.outputs[i] = outs[i]->mutable_data_ptr();
  }
  arguments.streaming = worth_streaming(outs, out_count, rows.dim);
  arguments.scale_rows = rows.operands[kScale].layout;
  arguments.routing_rows = rows.operands[kRoutingWeights].layout;
  arguments.operand_types = rows.operand_types;
  arguments.scale_is_scalar = rows.scale_is_scalar;
  arguments.dim = rows.dim;
  arguments.top_k = rows.top_k;
  arguments.expert_stride = rows.expert_stride;
  arguments.options = call.options();
  arguments.activation = call.activation();
  run_kernel(select_kernel(call.op(), arguments, rows.dtype), arguments, rows.count);
}

struct Cpu {
  static void check(const NormCall& /*call*/) {}
  static at::Tensor empty(const at::Tensor& like) {
    return at::detail::empty_cpu(like.sizes(), like.options());
  }
  template <size_t n>
  static void run(const NormCall& call, const at::Tensor* const (&outs)[n]) {
    if (call.like().numel() > 0) {
      run_call(call, outs, n);
    }
  }
};

class CpuRecord : public RmsNormRecord {
 public:
  explicit CpuRecord(const Spec& spec) : RmsNormRecord(spec) {
    arguments_.input_rows[0] = {spec.dim, 0, 0, 1, 1};
    arguments_.scale_rows = arguments_.routing_rows = {0, 0, 0, 1, 1};
    arguments_.operand_types = spec.operand_types();
    arguments_.dim = spec.dim;
    arguments_.options = spec.options;
    kernel_ = select_kernel(Op::rms_norm, arguments_, dtype_of(spec.dtype));
  }

 private:
  void run(const at::Tensor& x, const OptionalTensor& weight,
           const at::Tensor& out) const override {
    NormArguments arguments = arguments_;
    arguments.inputs[0] = x.const_data_ptr();
    arguments.operands[0] = weight.has_value() ? weight->const_data_ptr() : nullptr;
    arguments.outputs[0] = out.mutable_data_ptr();
    const at::Tensor* const outs[] = {&out};
    arguments.streaming = worth_streaming(outs, 1, arguments.dim);
    run_kernel(kernel_, arguments, spec().rows);
  }

  NormArguments arguments_{};
  NormKernel kernel_;
};

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, CPU, m) {
  register_kernels<Cpu>(m);
  m.impl("_bake_rms_norm", bake_rms_norm<CpuRecord>);
}

}  // namespace mlxnorm::cpu
