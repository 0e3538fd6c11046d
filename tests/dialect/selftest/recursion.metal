#include <metal_stdlib>
using namespace metal;

METAL_FUNC uint odd(uint n);
// error: Metal has no recursion ('even')
METAL_FUNC uint even(uint n) {
  return n == 0 ? 1 : odd(n - 1);
}
METAL_FUNC uint odd(uint n) {
  return n == 0 ? 0 : even(n - 1);
}

kernel void parity(device uint* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  x[i] = even(x[i]);
}
