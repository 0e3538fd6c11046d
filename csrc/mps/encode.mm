// Dispatches on PyTorch's MPS stream. Built without ARC.
//
// Of PyTorch's MPS headers only MPSStream.h and MPSDevice.h are used: the layout of the others
// changes between releases.
#include <ATen/mps/MPSStream.h>
#include <Metal/Metal.h>
#include <dispatch/dispatch.h>

#include <exception>

#include "launch.h"

namespace mlxnorm::mps {
namespace {

// The data pointer of an MPS storage is its MTLBuffer.
id<MTLBuffer> buffer_of(const at::Tensor& tensor) {
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

}  // namespace

// PyTorch's graph capture records these calls alone, and every dispatch uses up what was set.
void run(std::span<const BoundLaunch> launches) {
  encode([&](id<MTLComputeCommandEncoder> encoder) {
    for (const auto& [launch, bindings] : launches) {
      for (size_t d = 0; d < launch->threadgroups.size(); ++d) {
        [encoder setComputePipelineState:__builtin_bit_cast(id<MTLComputePipelineState>,
                                                            launch->pipeline)];
        for (size_t i = 0; i < kParamsBuffer; ++i) {
          if (const at::Tensor* tensor = bindings.tensors[i]) {
            [encoder setBuffer:buffer_of(*tensor)
                        offset:NSUInteger(byte_offset(*tensor))
                       atIndex:NSUInteger(i)];
          }
        }
        [encoder setBytes:launch->params_of(d)
                   length:launch->segments * sizeof(NormParams)
                  atIndex:kParamsBuffer];
        [encoder dispatchThreadgroups:MTLSizeMake(launch->threadgroups[d], 1, 1)
                threadsPerThreadgroup:MTLSizeMake(launch->threads, 1, 1)];
      }
    }
  });
}

}  // namespace mlxnorm::mps
