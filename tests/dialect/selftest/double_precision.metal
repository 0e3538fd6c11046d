#include <metal_stdlib>
using namespace metal;

kernel void precise(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  // error: use of type 'double'
  const double wide = x[i];
  x[i] = wide;
}
