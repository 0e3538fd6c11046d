#include <metal_stdlib>
using namespace metal;

kernel void closure(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  // error: Metal has no lambdas
  const auto twice = [](float v) { return 2.0f * v; };
  x[i] = twice(x[i]);
}
