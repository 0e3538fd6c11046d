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
  size_t segments;
  std::vector<uint32_t> threadgroups;  // of each dispatch
  std::vector<NormParams> params;      // of each dispatch, those of all segments

  // Of dispatch d.
  const NormParams* params_of(size_t d) const { return params.data() + d * segments; }
};

Launch make_launch(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
                   bool aligned);

// The same, made once for the calls that a thread repeats. Stays until the thread's next call.
const Launch& recent_launch(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
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

struct BoundLaunch {
  const Launch* launch;
  Bindings bindings;
};

// Encodes them on the current stream, at once: encode.mm.
void run(std::span<const BoundLaunch> launches);

}  // namespace mlxnorm::mps
