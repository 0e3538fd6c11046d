#include <metal_stdlib>

kernel void nothing(device float* x [[buffer(0)]]) {
  // error: no #line in a shader
#line 5 "line_directive.metal"
  x[0] = 0.0f;
}
