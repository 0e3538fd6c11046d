// CPU tensors.
#include <ATen/EmptyTensor.h>

#include <algorithm>

#include "../register.h"
#include "../channel_layout.h"
#include "../row_layout.h"
#include "parallel.h"
#include "scratch.h"
#include "select.h"
#include "split.h"

namespace mlxnorm::cpu {
namespace {

void run_kernel(const NormKernel& kernel, const NormArguments& arguments) {
  const NormLayout& layout = arguments.layout;
  if (kernel.of_part.run != nullptr && worth_splitting(layout)) {
    return run_in_parts(kernel, arguments);
  }
  int64_t units = layout.rows, length = layout.dim, elements = layout.dim;
  if (layout.line != 0) {
    const ColumnStrips strips(layout);
    units *= strips.of_a_line;
    length = strips.width;
    elements *= std::min(layout.line, length);
  }
  parallel_rows(units, elements, [&](int64_t begin, int64_t end) {
    Scratch scratch(kernel.scratch_rows * scratch_size(length));
    kernel.run(arguments, begin, end, scratch.floats());
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

class CpuRecord : public Record {
 public:
  CpuRecord(const NormCall& call, const at::Tensor* const* outs, c10::Device device)
      : Record(call, outs, device) {
    for (const auto& [segment, layout] : parts()) {
      NormArguments arguments{layout, options()};
      for (size_t t = 0; t < segment->count; ++t) {
        const bool is_there = tensor_type(layout.tensor_types, int(t)) != kAbsent;
        arguments.tensors[t] = is_there ? this : nullptr;  // what kernels are chosen by
      }
      kernels_.push_back(select_kernel(op().op, arguments));
    }
  }

 private:
  void run_checked(std::span<const Call> calls) const override {
    for (const Call& call : calls) {
      static_cast<const CpuRecord*>(call.record)->run_alone(call);
    }
  }

  void run_alone(const Call& call) const {
    for (size_t p = 0; p < parts().size(); ++p) {
      const auto& [segment, layout] = parts()[p];
      TensorPointers tensors{};
      select_tensors(*segment, layout, call.tensors, tensors);
      NormArguments arguments{layout, options()};
      bind(arguments, tensors, call.outs + segment->first_result, segment->results);
      run_kernel(kernels_[p], arguments);
    }
  }

  c10::SmallVector<NormKernel, 1> kernels_;  // of parts
};

struct Cpu {
  static void check_limits(const NormCall& /*call*/, c10::Device /*device*/) {}
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

  static RecordPointer bake(const NormCall& call, const at::Tensor* const* outs,
                            c10::Device device) {
    return c10::make_intrusive<CpuRecord>(call, outs, device);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, CPU, m) {
  register_kernels<Cpu>(m);
  register_records<Cpu>(m);
}

}  // namespace mlxnorm::cpu
