#include <metal_stdlib>

// error: unknown pragma
#pragma METAL fp contract(none)

kernel void nothing(device float* x [[buffer(0)]]) {
  x[0] = 0.0f;
}
