#include <metal_stdlib>
using namespace metal;

// error: parameter 'value' points or refers to memory without
METAL_FUNC void clear(float& value) {
  value = 0.0f;
}

kernel void unnamed(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  float copy = x[i];
  clear(copy);
  x[i] = copy;
}
