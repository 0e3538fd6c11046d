#include <metal_stdlib>

kernel void nothing(device float* x [[buffer(0)]]) {
  x[0] = 0.0f;
  // error: can only appear at file scope or at the start of a compound statement
#pragma METAL fp contract(off)
  x[1] = 0.0f;
}
