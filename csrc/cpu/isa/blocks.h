// Reading, computing with and writing a row with the vectors of the instruction set that this is
// compiled for, in blocks of two float vectors: what one vector of a 16-bit dtype holds.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kVec = Vec::size();
constexpr int64_t kBlock = 2 * kVec;

struct Block {
  Vec low, high;

  // As an aggregate GCC 12 would pass it through the stack on arm64.
  Block(Vec low_half, Vec high_half) : low(low_half), high(high_half) {}
};

inline Block splat(float value) {
  return {Vec(value), Vec(value)};
}

template <typename T>
inline Block load_block(const T* p) {
  if constexpr (std::is_same_v<T, float>) {
    return {Vec::loadu(p), Vec::loadu(p + kVec)};
  } else {
    const auto [low, high] = at::vec::convert_to_float<T>(at::vec::Vectorized<T>::loadu(p));
    return {low, high};
  }
}

// The first n < kBlock elements; the rest of the block is zero.
template <typename T>
inline Block load_block(const T* p, int64_t n) {
  if constexpr (std::is_same_v<T, float>) {
    const int64_t low = std::min(n, kVec);
    return {Vec::loadu(p, low), n > kVec ? Vec::loadu(p + kVec, n - kVec) : Vec(0.0f)};
  } else {
    // Zeros of T first: a partial load may leave the other lanes undefined.
    T elements[kBlock] = {};
    std::copy_n(p, n, elements);
    return load_block(elements);
  }
}

// In rows: far enough ahead for memory to answer.
template <typename T>
inline int64_t prefetch_distance(int64_t dim) {
  constexpr int64_t kBytes = 4096;
  return std::max<int64_t>(1, kBytes / int64_t(dim * sizeof(T)));
}

template <bool kForWriting = false, typename T>
inline void prefetch_block(const T* p) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kBlock; i += kLine) {
    __builtin_prefetch(p + i, kForWriting);
  }
}

// Past the caches: a plain store would first read the line that it overwrites.
inline void stream_vector(void* p, const void* vector) {
#if defined(CPU_CAPABILITY_AVX512)
  _mm512_stream_si512(static_cast<__m512i*>(p), _mm512_loadu_si512(vector));
#elif defined(CPU_CAPABILITY_AVX2)
  _mm256_stream_si256(static_cast<__m256i*>(p),
                      _mm256_loadu_si256(static_cast<const __m256i*>(vector)));
#else
  std::memcpy(p, vector, sizeof(Vec));
#endif
}

inline void stream_fence() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  _mm_sfence();
#endif
}

template <typename T>
inline void store_block(T* p, Block block) {
  if constexpr (std::is_same_v<T, float>) {
    block.low.store(p);
    block.high.store(p + kVec);
  } else {
    at::vec::convert_from_float<T>(block.low, block.high).store(p);
  }
}

template <typename T>
inline void store_block(T* p, Block block, int64_t n) {
  T elements[kBlock];
  store_block(elements, block);
  std::copy_n(elements, n, p);
}

// p is aligned to a vector.
template <typename T>
inline void stream_block(T* p, Block block) {
  if constexpr (std::is_same_v<T, float>) {
    stream_vector(p, &block.low);
    stream_vector(p + kVec, &block.high);
  } else {
    const auto narrow = at::vec::convert_from_float<T>(block.low, block.high);
    stream_vector(p, &narrow);
  }
}

#ifndef CPU_CAPABILITY_DEFAULT
// In place, which takes half as long as packing and unpacking; a NaN is PyTorch's.
inline Vec round_to_bfloat16(Vec vec) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(Vec))));
  const Bits bits = std::bit_cast<Bits>(vec);
  const auto is_nan = (bits & 0x7fffffff) > 0x7f800000;
  const Bits rounded = bits + 0x7fff + (bits >> 16 & 1);
  return std::bit_cast<Vec>((is_nan ? Bits{} - 1 : rounded) & 0xffff0000);
}
#endif

// The value that storing as T and loading again would give.
template <typename T>
inline Block round_to(Block block) {
  if constexpr (std::is_same_v<T, float>) {
    return block;
#ifndef CPU_CAPABILITY_DEFAULT
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    return {round_to_bfloat16(block.low), round_to_bfloat16(block.high)};
#endif
  } else {
    const auto [low, high] =
        at::vec::convert_to_float<T>(at::vec::convert_from_float<T>(block.low, block.high));
    return {low, high};
  }
}

inline Block operator*(Block a, Block b) {
  return {a.low * b.low, a.high * b.high};
}
inline Block operator*(Block a, float b) {
  return {a.low * Vec(b), a.high * Vec(b)};
}
inline Block operator+(Block a, Block b) {
  return {a.low + b.low, a.high + b.high};
}
inline Block operator+(Block a, float b) {
  return {a.low + Vec(b), a.high + Vec(b)};
}
inline Block operator-(Block a, Block b) {
  return {a.low - b.low, a.high - b.high};
}
inline Block operator-(Block a) {
  return {a.low.neg(), a.high.neg()};
}
inline Block operator/(Block a, Block b) {
  return {a.low / b.low, a.high / b.high};
}
inline Block operator/(float a, Block b) {
  return {Vec(a) / b.low, Vec(a) / b.high};
}
inline Block exp_of_negative(Block a) {
  return {a.low.neg().exp(), a.high.neg().exp()};
}
// (-b, a) for each pair (a, b) of neighbours. Pairs are integers: that becomes two instructions.
inline Vec quarter_turn(Vec vec) {
  uint64_t pairs[kVec / 2];
  vec.store(pairs);
  for (uint64_t& pair : pairs) {
    pair = (pair << 32 | pair >> 32) ^ 0x80000000u;
  }
  return Vec::loadu(pairs);
}
inline Block quarter_turn(Block a) {
  return {quarter_turn(a.low), quarter_turn(a.high)};
}
inline Block each_twice(Vec vec) {
  uint32_t elements[kVec];
  uint64_t pairs[kVec];
  vec.store(elements);
  for (int64_t i = 0; i < kVec; ++i) {
    pairs[i] = uint64_t(elements[i]) << 32 | elements[i];
  }
  return {Vec::loadu(pairs), Vec::loadu(pairs + kVec / 2)};
}
inline Block tanh(Block a) {
  return {a.low.tanh(), a.high.tanh()};
}
inline Block fma(float a, Block b, Block c) {
  return {at::vec::fmadd(b.low, Vec(a), c.low), at::vec::fmadd(b.high, Vec(a), c.high)};
}

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
