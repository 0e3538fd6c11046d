// Sums of a row over the threads that share it. Their order depends on dim and the dtype alone, not
// on how many words a thread has, and every op sums with these functions, so that fused and single
// ops agree to the bit: 32 neighbouring words, a chunk, are summed as a tree of halving distances,
// and then the sums of the chunks are.
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

template <typename T>
METAL_FUNC float sum_of(ValuesOf<T> values) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    sum += values.v[i];
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

// Of one word of each thread of a SIMD group for each chunk: the sum of chunk_of(lane). While there
// are several, every exchange halves their number, each lane keeping those that become its own.
template <int kChunks>
METAL_FUNC float chunk_sum(thread float* v, uint lane) {
  uint distance = kSimdWidth / 2;
#pragma unroll
  for (int chunks = kChunks; chunks > 1; chunks /= 2) {
    const bool odd = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < chunks / 2; ++i) {
      const float mine = odd ? v[2 * i + 1] : v[2 * i];
      const float other = odd ? v[2 * i] : v[2 * i + 1];
      v[i] = mine + simd_shuffle_xor(other, ushort(distance));
    }
    distance /= 2;
  }
  return lanes_sum(v[0], 2 * distance);
}

template <int kChunks>
METAL_FUNC uint chunk_of(uint lane) {
  uint chunk = 0;
#pragma unroll
  for (int bit = 1, distance = kSimdWidth / 2; bit < kChunks; bit *= 2, distance /= 2) {
    chunk += (lane & uint(distance)) != 0 ? bit : 0;
  }
  return chunk;
}

// Of a row that `lanes` threads share, whose words are `lanes` apart; the result in each of them.
// Fewer lanes than a SIMD group has share one chunk.
template <int kWords>
METAL_FUNC float lanes_sum_of_words(thread float* v, uint lane, uint lanes) {
  if (lanes < kSimdWidth) {
#pragma unroll
    for (int distance = kWords / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int i = 0; i < distance; ++i) {
        v[i] += v[i + distance];
      }
    }
    return lanes_sum(v[0], lanes);
  }
  float sum = chunk_sum<kWords>(v, lane);
#pragma unroll
  for (uint distance = kSimdWidth / kWords; distance < kSimdWidth; distance *= 2) {
    sum += simd_shuffle_xor(sum, ushort(distance));
  }
  return sum;
}

// Over the threadgroup, the result in every thread. Each call needs a `partial` of its own, for
// kWords of each SIMD group: there is no barrier that would let a second call write where the first
// is still being read.
template <int kWords>
METAL_FUNC float threadgroup_sum(thread float* v, threadgroup float* partial, uint simdgroup,
                                 uint lane, uint simdgroups) {
  const float chunk = chunk_sum<kWords>(v, lane);
  if (lane % (kSimdWidth / kWords) == 0) {
    partial[chunk_of<kWords>(lane) * simdgroups + simdgroup] = chunk;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    const uint i = lane + k * kSimdWidth;
    sum += i < kWords * simdgroups ? partial[i] : 0.0f;
  }
  return lanes_sum(sum, kSimdWidth);
}

METAL_FUNC float inverse_rms(float sum_of_squares, float inverse_dim, float eps) {
  return metal::precise::rsqrt(metal::fma(sum_of_squares, inverse_dim, eps));
}
