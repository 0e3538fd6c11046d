#include <metal_stdlib>
using namespace metal;

template <typename Values, int n>
struct Outputs {
  Values values[n];
};

METAL_FUNC Outputs<bfloat, 1> rounded(float a) {
  // error: no viable conversion from '__private float' to 'bfloat'
  return {{a}};
}

kernel void round_all(device bfloat* x [[buffer(0)]]) {
  x[0] = rounded(1.0f).values[0];
}
