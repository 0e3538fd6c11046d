#include <Metal/Metal.h>

void language(MTLCompileOptions* options) {
  // error: 'MTLLanguageVersion3_2' is only available on macOS 15.0 or newer
  options.languageVersion = MTLLanguageVersion3_2;
}
