#include <metal_stdlib>
using namespace metal;

template <typename Values, int n>
struct Outputs {
  Values values[n];
};

METAL_FUNC Outputs<float, 2> both(float a, float b) {
  // error: excess elements
  return {{a, b, a + b}};
}

kernel void sums(device float* x [[buffer(0)]]) {
  x[0] = both(x[1], x[2]).values[0];
}
