#include <metal_stdlib>
using namespace metal;

constant float kScale = 2.0f;

kernel void write(device float* x [[buffer(0)]]) {
  // error: read-only variable is not assignable
  kScale = x[0];
}
