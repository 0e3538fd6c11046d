#include <metal_stdlib>
using namespace metal;

METAL_FUNC float first(threadgroup float* values) {
  return values[0];
}

kernel void mixed(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  // error: no matching function for call to 'first'
  x[i] = first(x);
}
