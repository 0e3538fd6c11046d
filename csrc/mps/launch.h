// A call as a kernel, its dispatches and what they bind. Plain C++, as pipeline.h.
#pragma once

#include <span>
#include <vector>

#include "../row_layout.h"
#include "pipeline.h"

namespace mlxnorm::mps {

// TORCH_MLXNORM_ACCESS or, by its name before, TORCH_MLXNORM_KERNEL; read at the first call.
Access chosen_access();

// Does every row of a segment that a kernel touches begin where vector access needs it? `outs` are
// those of the segment.
bool all_aligned(const OpTable& op, const Segment& segment, const NormLayout& layout,
                 const TensorPointers& tensors, const at::Tensor* const* outs);

// A kernel with everything but the tensors.
struct Launch {
  Pipeline pipeline;
  uint32_t threads;
  std::vector<Dispatch> dispatches;
  c10::SmallVector<NormParams, 1> params;  // of each segment, but for the rows of a dispatch
};

Launch make_launch(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
                   bool aligned);

// What a call binds, by BufferIndex; null where it has nothing.
struct Bindings {
  // A segment's tensors and outs.
  void add(const Segment& segment, const TensorPointers& tensors, const at::Tensor* const* outs);

  const at::Tensor* tensors[kParamsBuffer] = {};
};

inline int64_t byte_offset(const at::Tensor& tensor) {
  return tensor.storage_offset() * int64_t(tensor.element_size());
}

// What a dispatch adds to the parameters.
void set_shares(const Dispatch& dispatch, c10::SmallVector<NormParams, 1>& params);

// Encodes it on the current stream: encode.mm.
void run(const Launch& launch, const Bindings& bindings);

}  // namespace mlxnorm::mps
