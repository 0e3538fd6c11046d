#include <metal_stdlib>
using namespace metal;

// error: parameter 'values' points or refers to memory without
METAL_FUNC float first(const float* values) {
  return values[0];
}

kernel void unnamed(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  float copy[1] = {x[i]};
  x[i] = first(copy);
}
