// The plain kernel that others are measured by: reads and writes, and next to nothing between.
// Planes of `words` words of 16 bytes follow one another, READS to read and WRITES to write.
#include <metal_stdlib>

using namespace metal;

kernel void plain(device const uint4* in [[buffer(0)]], device uint4* out [[buffer(1)]],
                  constant uint& words [[buffer(2)]], uint group [[threadgroup_position_in_grid]],
                  uint thread_index [[thread_index_in_threadgroup]],
                  uint threads [[threads_per_threadgroup]]) {
  const uint first = group * threads * PER_THREAD + thread_index;
  uint4 values[PER_THREAD];
#pragma unroll
  for (uint k = 0; k < PER_THREAD; ++k) {
    const uint i = first + k * threads;
    values[k] = uint4(0u);
    if (i < words) {
#pragma unroll
      for (uint r = 0; r < READS; ++r) {
        values[k] ^= in[size_t(r) * words + i];
      }
    }
  }
#pragma unroll
  for (uint k = 0; k < PER_THREAD; ++k) {
    const uint i = first + k * threads;
    if (i < words) {
#pragma unroll
      for (uint w = 0; w < WRITES; ++w) {
        out[size_t(w) * words + i] = values[k];
      }
    }
  }
}
