// CPU tensors.
#include <ATen/EmptyTensor.h>

#include <algorithm>
#include <memory>

#include "../record.h"
#include "../register.h"
#include "../channel_layout.h"
#include "../row_layout.h"
#include "parallel.h"
#include "select.h"

namespace mlxnorm::cpu {
namespace {

void run_kernel(const NormKernel& kernel, const NormArguments& arguments) {
  const NormLayout& layout = arguments.layout;
  int64_t units = layout.rows, length = layout.dim, elements = layout.dim;
  if (layout.line != 0) {
    const ColumnStrips strips(layout);
    units *= strips.of_a_line;
    length = strips.width;
    elements *= std::min(layout.line, length);
  }
  parallel_rows(units, elements, [&](int64_t begin, int64_t end) {
    std::unique_ptr<float[]> memory;
    void* scratch = nullptr;
    if (kernel.scratch_rows != 0) {
      // On a cache line: vectors that lie across two cost a tenth of the time.
      constexpr size_t kLine = 64;
      const size_t size = size_t(kernel.scratch_rows * scratch_size(length)) * sizeof(float);
      size_t space = size + kLine;
      memory.reset(new float[space / sizeof(float)]);
      scratch = memory.get();
      std::align(kLine, size, scratch, space);
    }
    kernel.run(arguments, begin, end, static_cast<float*>(scratch));
  });
}

// Addresses, and what depends on them.
void bind(NormArguments& arguments, const TensorPointers& tensors, const at::Tensor* const* outs,
          size_t out_count) {
  for (size_t t = 0; t < kMaxTensors; ++t) {
    arguments.tensors[t] = tensors[t] == nullptr ? nullptr : tensors[t]->const_data_ptr();
  }
  for (size_t r = 0; r < out_count; ++r) {
    arguments.results[r] = outs[r]->mutable_data_ptr();
  }
  arguments.streaming = worth_streaming(arguments.layout, arguments.results, out_count);
}

struct Cpu {
  static void check_limits(const NormCall& /*call*/) {}
  static at::Tensor empty(const at::Tensor& like) {
    return at::detail::empty_cpu(like.sizes(), like.options());
  }

  static void run(const NormCall& call, const at::Tensor* const* outs) {
    const OpTable& op = call.op();
    if (has_channels(op)) {
      return run_channels(call, *outs[0], [&](const LaidOutChannels& laid_out) {
        NormArguments arguments{laid_out.layout, call.options()};
        bind(arguments, laid_out.tensors, &laid_out.out, 1);
        run_kernel(select_kernel(op.op, arguments), arguments);
      });
    }
    for (size_t s = 0; s < op.segment_count; ++s) {
      const Segment& segment = op.segments[s];
      if (call.like(segment.first_result).numel() == 0) {
        continue;
      }
      const LaidOutCall laid_out(call, outs, s);
      NormArguments arguments{laid_out.layout, call.options()};
      bind(arguments, laid_out.tensors, outs + segment.first_result, segment.results);
      run_kernel(select_kernel(op.op, arguments), arguments);
    }
  }
};

class CpuRecord : public RmsNormRecord {
 public:
  explicit CpuRecord(const Spec& spec)
      : RmsNormRecord(spec),
        layout_(spec.layout()),
        arguments_{layout_, spec.options},
        kernel_(select_kernel(Op::rms_norm, arguments_)) {}

 private:
  void run(const TensorPointers& tensors, const at::Tensor& out) const override {
    NormArguments arguments = arguments_;
    const at::Tensor* const outs[] = {&out};
    bind(arguments, tensors, outs, 1);
    run_kernel(kernel_, arguments);
  }

  NormLayout layout_;
  NormArguments arguments_;
  NormKernel kernel_;
};

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, CPU, m) {
  register_kernels<Cpu>(m);
  register_functional<bake_rms_norm<CpuRecord>>(m, "_bake_rms_norm");
}

}  // namespace mlxnorm::cpu
