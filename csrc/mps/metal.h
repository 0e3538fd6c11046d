// The only place that talks to Metal's libraries, pipelines and PyTorch's MPS stream.
//
// Of PyTorch's MPS headers only MPSStream.h and MPSDevice.h are used: the layout of the others
// changes between releases. Built without ARC.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/mps/MPSStream.h>
#include <Foundation/Foundation.h>
#include <Metal/Metal.h>

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "plan.h"

namespace mlxnorm::mps {

// What a pipeline is specialised for.
struct PipelineKey {
  Op op;  // names the library, shaders/OP.metal, and is the prefix of its functions
  Plan plan;
  DType dtype;
  uint32_t operand_types;
  bool scale_is_scalar;
  Activation activation;
  bool round_before_weight;
  bool round_intermediates;
};

// Made on first use, then cached for the life of the process. Threads that ask for different ones
// make them side by side. Raises when Metal fails.
id<MTLComputePipelineState> pipeline(const PipelineKey& key);

// How a pipeline came about.
struct CompiledKernel {
  std::string name;    // the function's
  const char* origin;  // "metallib", or "source" that was compiled at run time
  double seconds;      // of the library, where it was not there yet, and of the pipeline
};

// Of all pipelines so far, in the order in which they were ready.
std::vector<CompiledKernel> compiled_kernels();

// TORCH_MLXNORM_KERNEL, read once per process.
KernelChoice kernel_choice();

inline int64_t byte_offset(const at::Tensor& tensor) {
  return tensor.storage_offset() * int64_t(tensor.element_size());
}

// The data pointer of an MPS storage is its MTLBuffer.
inline id<MTLBuffer> buffer_of(const at::Tensor& tensor) {
  return __builtin_bit_cast(id<MTLBuffer>, tensor.storage().data());
}

// Calls body(encoder) on the queue of the current MPS stream. The encoder stays PyTorch's: nothing
// is committed, waited for or ended here.
template <typename Body>
void encode(const Body& body) {
  at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
  const Body* encode_body = &body;
  // libdispatch does not pass exceptions on.
  __block std::exception_ptr error;
  dispatch_sync(stream->queue(), ^{
    @autoreleasepool {
      try {
        (*encode_body)(stream->commandEncoder());
      } catch (...) {
        error = std::current_exception();
      }
    }
  });
  if (error) {
    std::rethrow_exception(error);
  }
}

}  // namespace mlxnorm::mps
