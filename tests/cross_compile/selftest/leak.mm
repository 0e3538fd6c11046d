#include <Metal/Metal.h>

id<MTLLibrary> library(id<MTLDevice> device, NSString* source) {
  // error: Potential leak of an object stored into 'options'
  MTLCompileOptions* options = [[MTLCompileOptions alloc] init];
  return [device newLibraryWithSource:source options:options error:nil];
}
