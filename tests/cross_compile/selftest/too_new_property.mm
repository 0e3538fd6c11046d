#include <Metal/Metal.h>

void safe_math(MTLCompileOptions* options) {
  // error: 'setMathMode:' is only available on macOS 15.0 or newer
  options.mathMode = MTLMathModeSafe;
}
