#include <Metal/Metal.h>

NSUInteger width(id<MTLComputePipelineState> pipeline) {
  // error: instance method '-threadExecutionWidht' not found
  return [pipeline threadExecutionWidht];
}
