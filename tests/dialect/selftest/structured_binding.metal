#include <metal_stdlib>
using namespace metal;

struct Pair {
  float a, b;
};
METAL_FUNC float sum(Pair pair) {
  // error: decomposition declarations are incompatible
  const auto [a, b] = pair;
  return a + b;
}
