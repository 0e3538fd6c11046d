#include <metal_stdlib>
using namespace metal;

// error: program scope variable must reside in constant
float total = 0.0f;

kernel void add(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  total += x[i];
}
