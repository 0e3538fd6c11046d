// Sums of a row over the threads that share it. Their order depends on dim and the dtype alone, and
// every op sums with these functions, so that fused and single ops agree to the bit.
#pragma once

#include "words.h"

template <typename T>
METAL_FUNC float sum_of_squares(ValuesOf<T> values) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    sum = metal::fma(values.v[i], values.v[i], sum);
  }
  return sum;
}

// A sum of any number of terms. What an addition rounds away goes into the next one (Kahan), so the
// error stays within two roundings where a plain sum's grows with their number.
struct CompensatedSum {
  float sum, lost;

  METAL_FUNC void add(float v) {
    const float term = v + lost;
    const float next = sum + term;
    lost = isfinite(next) ? term - (next - sum) : 0.0f;
    sum = next;
  }
};

// Over `lanes` neighbouring threads of a SIMD group, a power of two; the result in each of them.
METAL_FUNC float lanes_sum(float v, uint lanes) {
  for (uint distance = lanes / 2; distance > 0; distance /= 2) {
    v += simd_shuffle_xor(v, ushort(distance));
  }
  return v;
}

// Over the threadgroup, the result in every thread. Each call needs a `partial` of its own: there
// is no barrier that would let a second call write where the first is still being read.
METAL_FUNC float threadgroup_sum(float v, threadgroup float* partial, uint simdgroup, uint lane,
                                 uint simdgroups) {
  v = lanes_sum(v, kSimdWidth);
  if (lane == 0) {
    partial[simdgroup] = v;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return lanes_sum(lane < simdgroups ? partial[lane] : 0.0f, kSimdWidth);
}

METAL_FUNC float inverse_rms(float sum_of_squares, float inverse_dim, float eps) {
  return metal::precise::rsqrt(metal::fma(sum_of_squares, inverse_dim, eps));
}
