#include <metal_stdlib>
using namespace metal;

kernel void thrower(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  if (x[i] < 0.0f) {
    // error: cannot use 'throw' with exceptions disabled
    throw 1;
  }
}
