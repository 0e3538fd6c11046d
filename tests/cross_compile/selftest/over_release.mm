#include <Metal/Metal.h>

void submit(id<MTLCommandQueue> queue) {
  id<MTLCommandBuffer> commands = [queue commandBuffer];  // autoreleased, not ours
  [commands commit];
  // error: Incorrect decrement of the reference count
  [commands release];
}
