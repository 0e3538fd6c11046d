// Kernels on PyTorch's MPS stream: what a dispatch binds. Built without ARC.
//
// Of PyTorch's MPS headers only MPSStream.h and MPSDevice.h are used: the layout of the others
// changes between releases.
#pragma once

#include <Metal/Metal.h>

#include <span>
#include <vector>

#include "../row_layout.h"
#include "pipeline_key.h"

namespace mlxnorm::mps {

// TORCH_MLXNORM_ACCESS or, by its name before, TORCH_MLXNORM_KERNEL; read at the first call.
Access chosen_access();

// Does every row of a segment that a kernel touches begin where vector access needs it? `outs` are
// those of the segment.
bool all_aligned(const OpTable& op, const Segment& segment, const NormLayout& layout,
                 const TensorPointers& tensors, const at::Tensor* const* outs);

// A kernel with everything but the tensors.
struct Launch {
  id<MTLComputePipelineState> state;
  uint32_t threads;
  std::vector<Dispatch> dispatches;
  c10::SmallVector<NormParams, 1> params;  // of each segment, but for the rows of a dispatch
};

Launch make_launch(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
                   bool aligned);

// What a call binds, by BufferIndex; nil where it has nothing.
class Bindings {
 public:
  // A segment's tensors and outs.
  void add(const Segment& segment, const TensorPointers& tensors, const at::Tensor* const* outs);

  static constexpr size_t kCount = kParamsBuffer;
  id<MTLBuffer> buffers[kCount] = {};
  NSUInteger offsets[kCount] = {};

 private:
  void set(size_t index, const at::Tensor& tensor);
};

// Encodes it on the current stream.
void run(const Launch& launch, const Bindings& bindings);

}  // namespace mlxnorm::mps
