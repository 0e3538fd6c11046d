// Kernels on PyTorch's MPS stream: what a dispatch binds. Built without ARC.
//
// Of PyTorch's MPS headers only MPSStream.h and MPSDevice.h are used: the layout of the others
// changes between releases.
#pragma once

#include <Metal/Metal.h>

#include <vector>

#include "../row_layout.h"
#include "plan.h"

namespace mlxnorm::mps {

// TORCH_MLXNORM_ACCESS or, by its name before, TORCH_MLXNORM_KERNEL; read at the first call.
Access chosen_access();

// Does every row that a kernel touches begin where vector access needs it?
bool all_aligned(const OpTable& op, const NormLayout& layout, const TensorPointers& tensors,
                 const at::Tensor* const* outs);

// A kernel with everything but the tensors.
struct Launch {
  id<MTLComputePipelineState> state;
  uint32_t threads;
  std::vector<Dispatch> dispatches;
  NormParams params;  // but for the rows of a dispatch
};

Launch make_launch(const OpTable& op, const NormLayout& layout, const NormOptions& options,
                   bool aligned);

// Encodes it on the current stream.
void run(const Launch& launch, const TensorPointers& tensors, const at::Tensor* const* outs,
         size_t out_count);

}  // namespace mlxnorm::mps
