#include <metal_stdlib>
using namespace metal;

kernel void rounded(device bfloat* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  const float doubled = float(x[i]) * 2.0f;
  // error: no viable overloaded '='
  x[i] = doubled;
}
