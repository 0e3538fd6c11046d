#include <Metal/Metal.h>

void bind(id<MTLComputeCommandEncoder> encoder, id<MTLFunction> function) {
  // error: with an lvalue of type 'id<MTLFunction>'
  [encoder setComputePipelineState:function];
}
