#include <Metal/Metal.h>

id<MTLBuffer> buffer(void* storage) {
  // error: casts have no effect when not using ARC
  return (__bridge_transfer id<MTLBuffer>)storage;
}
