#include <metal_stdlib>
using namespace metal;

// error: Metal has no attribute [[thread_index_in_simd_group]]
kernel void lanes(device uint* x [[buffer(0)]], uint lane [[thread_index_in_simd_group]]) {
  x[lane] = lane;
}
