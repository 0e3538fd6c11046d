// A small op as the extension's host code is written; compiles clean, needs only what every
// supported PyTorch exports. The other files here each plant one mistake.
#include <Foundation/Foundation.h>
#include <Metal/Metal.h>

#include <ATen/core/Tensor.h>
#include <ATen/mps/MPSDevice.h>
#include <ATen/mps/MPSStream.h>

#include <exception>

namespace selftest {
namespace {

struct Params {
  uint32_t dim;
  float eps;
};

id<MTLBuffer> buffer_of(const at::Tensor& tensor) {
  return __builtin_bit_cast(id<MTLBuffer>, tensor.storage().data());
}

// An exception must not leave a block, so it is carried out by hand.
template <typename Body>
void run_on(dispatch_queue_t queue, const Body& body) {
  __block std::exception_ptr error;
  dispatch_sync(queue, ^{
    try {
      body();
    } catch (...) {
      error = std::current_exception();
    }
  });
  if (error) {
    std::rethrow_exception(error);
  }
}

id<MTLComputePipelineState> make_pipeline(const char* source, bool has_weight) {
  id<MTLDevice> device = at::mps::MPSDevice::getInstance()->device();
  NSError* error = nil;
  MTLCompileOptions* options = [[MTLCompileOptions alloc] init];
  options.languageVersion = MTLLanguageVersion3_1;
  if (@available(macOS 15.0, *)) {
    options.mathMode = MTLMathModeSafe;
  } else {
    options.fastMathEnabled = NO;
  }
  id<MTLLibrary> library = [device newLibraryWithSource:[NSString stringWithUTF8String:source]
                                                options:options
                                                  error:&error];
  [options release];
  TORCH_CHECK(library != nil, "Metal: ", error.localizedDescription.UTF8String);

  MTLFunctionConstantValues* constants = [[MTLFunctionConstantValues alloc] init];
  [constants setConstantValue:&has_weight type:MTLDataTypeBool atIndex:0];
  id<MTLFunction> function = [library newFunctionWithName:@"norm"
                                           constantValues:constants
                                                    error:&error];
  [constants release];
  [library release];
  TORCH_CHECK(function != nil, "Metal: ", error.localizedDescription.UTF8String);
  id<MTLComputePipelineState> pipeline = [device newComputePipelineStateWithFunction:function
                                                                               error:&error];
  [function release];
  TORCH_CHECK(pipeline != nil, "Metal: ", error.localizedDescription.UTF8String);
  return pipeline;
}

}  // namespace

void norm(const at::Tensor& x, const at::Tensor& out, const char* source, float eps) {
  @autoreleasepool {
    static id<MTLComputePipelineState> pipeline = make_pipeline(source, false);
    at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
    const Params params = {uint32_t(x.size(-1)), eps};
    run_on(stream->queue(), [&] {
      id<MTLComputeCommandEncoder> encoder = stream->commandEncoder();
      [encoder setComputePipelineState:pipeline];
      [encoder setBuffer:buffer_of(x) offset:x.storage_offset() * x.element_size() atIndex:0];
      [encoder setBuffer:buffer_of(out) offset:out.storage_offset() * out.element_size() atIndex:1];
      [encoder setBytes:&params length:sizeof(params) atIndex:2];
      [encoder dispatchThreadgroups:MTLSizeMake(x.numel() / params.dim, 1, 1)
              threadsPerThreadgroup:MTLSizeMake(pipeline.threadExecutionWidth, 1, 1)];
    });
  }
}

}  // namespace selftest
