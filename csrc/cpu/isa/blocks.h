// Reading, computing with and writing a row with the vectors of the instruction set that this is
// compiled for, in blocks of two float vectors: what one vector of a 16-bit dtype holds.
//
// T is the dtype of the rows, by which all that meets in a formula is ordered: see kEvensAndOdds.
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

// A block's vectors are its first half and its second one. Of bfloat16 rows on x86 they are its
// even elements and its odd ones, so that a shift and a mask unpack it and no lane is crossed.
template <typename T>
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
constexpr bool kEvensAndOdds = std::is_same_v<T, c10::BFloat16>;
#else
constexpr bool kEvensAndOdds = false;
#endif

// Without vectors, what saves conversions gains nothing.
#if defined(CPU_CAPABILITY_DEFAULT) && defined(__x86_64__)
constexpr bool kHasVectors = false;
#else
constexpr bool kHasVectors = true;
#endif

struct Block {
  Vec low, high;

  // As an aggregate GCC 12 would pass it through the stack on arm64.
  Block(Vec low_half, Vec high_half) : low(low_half), high(high_half) {}
};

inline Block splat(float value) {
  return {Vec(value), Vec(value)};
}

typedef uint32_t Bits __attribute__((vector_size(sizeof(Vec))));

// Halves, from elements of type U.
template <typename U>
inline Block load_halves(const U* p) {
  if constexpr (std::is_same_v<U, float>) {
    return {Vec::loadu(p), Vec::loadu(p + kVec)};
#if defined(CPU_CAPABILITY_AVX512)
  } else if constexpr (std::is_same_v<U, c10::Half>) {
    // From memory each half, which needs no vector taken apart.
    const auto* const halves = reinterpret_cast<const __m256i*>(p);
    return {Vec(_mm512_cvtph_ps(_mm256_loadu_si256(halves))),
            Vec(_mm512_cvtph_ps(_mm256_loadu_si256(halves + 1)))};
#elif defined(CPU_CAPABILITY_AVX2)
  } else if constexpr (std::is_same_v<U, c10::Half>) {
    const auto* const halves = reinterpret_cast<const __m128i*>(p);
    return {Vec(_mm256_cvtph_ps(_mm_loadu_si128(halves))),
            Vec(_mm256_cvtph_ps(_mm_loadu_si128(halves + 1)))};
#endif
  } else {
    const auto [low, high] = at::vec::convert_to_float<U>(at::vec::Vectorized<U>::loadu(p));
    return {low, high};
  }
}

template <typename T, typename U>
inline Block load_block(const U* p) {
  if constexpr (!kEvensAndOdds<T>) {
    return load_halves(p);
  } else if constexpr (std::is_same_v<U, c10::BFloat16>) {
    Bits pairs;
    std::memcpy(&pairs, p, sizeof(pairs));
    return {std::bit_cast<Vec>(pairs << 16), std::bit_cast<Vec>(pairs & 0xffff0000)};
  } else {
    const Block halves = load_halves(p);
    const auto [evens, odds] = at::vec::deinterleave2(halves.low, halves.high);
    return {evens, odds};
  }
}

// The first n < kBlock elements; the rest of the block is zero.
template <typename T, typename U>
inline Block load_block(const U* p, int64_t n) {
  if constexpr (std::is_same_v<U, float> && !kEvensAndOdds<T>) {
    const int64_t low = std::min(n, kVec);
    return {Vec::loadu(p, low), n > kVec ? Vec::loadu(p + kVec, n - kVec) : Vec(0.0f)};
  } else {
    // Zeros first: a partial load may leave the other lanes undefined.
    U elements[kBlock] = {};
    std::copy_n(p, n, elements);
    return load_block<T>(elements);
  }
}

// In rows: far enough ahead for memory to answer.
template <typename T>
inline int64_t prefetch_distance(int64_t dim) {
  constexpr int64_t kBytes = 4096;
  return std::max<int64_t>(1, kBytes / int64_t(dim * sizeof(T)));
}

// Always inlined, and so is what calls it: GCC takes a function that only prefetches for one
// without effects and may leave out calls of it.
template <bool kForWriting = false, typename T>
[[gnu::always_inline]] inline void prefetch_block(const T* p) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kBlock; i += kLine) {
    __builtin_prefetch(p + i, kForWriting);
  }
}

inline void stream_fence() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  _mm_sfence();
#endif
}

#if defined(CPU_CAPABILITY_AVX512)
// The upper half of each is a bfloat16; a NaN is PyTorch's. Sums with masks: of lanes that are no
// NaN, and of these, ones whose upper half is odd.
inline Bits rounded_to_bfloat16(Vec vec) {
  const __m512i bits = _mm512_castps_si512(vec), nan = _mm512_set1_epi32(-1);
  const __mmask16 ordered = _mm512_cmp_ps_mask(vec, vec, _CMP_ORD_Q);
  const __mmask16 odd = _mm512_mask_test_epi32_mask(ordered, bits, _mm512_set1_epi32(0x10000));
  const __m512i down = _mm512_mask_add_epi32(nan, ordered, bits, _mm512_set1_epi32(0x7fff));
  return std::bit_cast<Bits>(_mm512_mask_add_epi32(down, odd, bits, _mm512_set1_epi32(0x8000)));
}
#elif !defined(CPU_CAPABILITY_DEFAULT)
// The upper half of each is a bfloat16; a NaN is PyTorch's.
inline Bits rounded_to_bfloat16(Vec vec) {
  typedef float Floats __attribute__((vector_size(sizeof(Vec))));
  const Bits bits = std::bit_cast<Bits>(vec);
  const Floats values = std::bit_cast<Floats>(vec);
  const Bits rounded = bits + 0x7fff + (bits >> 16 & 1);
  return values != values ? Bits{} - 1 : rounded;
}
#endif

// store(vector, number): of the one or two that hold a block in memory, as elements of type U.
template <typename T, typename U, typename Store>
[[gnu::always_inline]] inline void with_vectors(Block block, const Store& store) {
  if constexpr (std::is_same_v<U, float>) {
    if constexpr (kEvensAndOdds<T>) {
      const auto [low, high] = at::vec::interleave2(block.low, block.high);
      store(low, 0), store(high, 1);
    } else {
      store(block.low, 0), store(block.high, 1);
    }
#ifndef CPU_CAPABILITY_DEFAULT
  } else if constexpr (kEvensAndOdds<T> && std::is_same_v<U, c10::BFloat16>) {
    store(std::bit_cast<Vec>(rounded_to_bfloat16(block.low) >> 16 |
                             (rounded_to_bfloat16(block.high) & 0xffff0000)),
          0);
#endif
  } else {
    static_assert(!kEvensAndOdds<T>, "a result is like the rows, or float32");
    store(at::vec::convert_from_float<U>(block.low, block.high), 0);
  }
}

template <typename T, typename U>
inline void store_block(U* p, Block block) {
  with_vectors<T, U>(block, [p](auto vector, int number) {
    std::memcpy(reinterpret_cast<char*>(p) + number * sizeof(vector), &vector, sizeof(vector));
  });
}

template <typename T, typename U>
inline void store_block(U* p, Block block, int64_t n) {
  U elements[kBlock];
  store_block<T>(elements, block);
  std::copy_n(elements, n, p);
}

// Past the caches: a plain store would first read the line that it overwrites. p is aligned to a
// vector.
template <typename T, typename U>
inline void stream_block(U* p, Block block) {
  with_vectors<T, U>(block, [p](auto vector, int number) {
    char* const to = reinterpret_cast<char*>(p) + number * sizeof(vector);
#if defined(CPU_CAPABILITY_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), std::bit_cast<__m512i>(vector));
#elif defined(CPU_CAPABILITY_AVX2)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), std::bit_cast<__m256i>(vector));
#else
    std::memcpy(to, &vector, sizeof(vector));
#endif
  });
}

// The value that storing as T and loading again would give.
template <typename T>
inline Block round_to(Block block) {
  if constexpr (std::is_same_v<T, float>) {
    return block;
#ifndef CPU_CAPABILITY_DEFAULT
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    // In place, which takes half as long as packing and unpacking.
    return {std::bit_cast<Vec>(rounded_to_bfloat16(block.low) & 0xffff0000),
            std::bit_cast<Vec>(rounded_to_bfloat16(block.high) & 0xffff0000)};
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
#ifdef CPU_CAPABILITY_DEFAULT
inline Vec exp(Vec x) {
  return x.exp();
}
#else
// exp(x) to the bit as Sleef's expf of 1.0 ulp has it, which Vec::exp calls: a call for every
// vector takes as long as what it computes. n is x / log(2) to the nearest integer and r what is
// left.
inline Vec exp(Vec x) {
  using at::vec::fmadd;
  // A NaN stays one. Past these limits the result is 0 or infinite.
  x = at::vec::clamp(x, Vec(-104.0f), Vec(104.0f));
  const Vec n = (x * Vec(1.44269504f)).round();
  const Vec r = fmadd(n, Vec(-1.42860677e-6f), fmadd(n, Vec(-0.693145752f), x));
  Vec sum(1.98527618e-4f);
  for (const float coefficient :
       {1.39304355e-3f, 8.33336078e-3f, 4.16664854e-2f, 0.166666672f, 0.5f}) {
    sum = fmadd(sum, r, Vec(coefficient));
  }
  sum = fmadd(r * r, sum, r) + Vec(1.0f);
#ifdef CPU_CAPABILITY_AVX512
  return Vec(_mm512_scalef_ps(sum, n));
#else
  // In two steps, for a power of two that is no normal number by itself.
  typedef int32_t Ints __attribute__((vector_size(sizeof(Vec))));
  const Ints exponent = std::bit_cast<Ints>(at::vec::convert_to_int_of_same_size(n));
  const Ints half = exponent >> 1, rest = exponent - half;
  return sum * std::bit_cast<Vec>((half + 127) << 23) * std::bit_cast<Vec>((rest + 127) << 23);
#endif
}
#endif
inline Block exp_of_negative(Block a) {
  return {exp(a.low.neg()), exp(a.high.neg())};
}
// (-b, a) for each pair (a, b) of neighbours.
template <typename T>
inline Block quarter_turn(Block block) {
  if constexpr (kEvensAndOdds<T>) {
    return {block.high.neg(), block.low};
  } else {
    const auto turned = [](Vec vec) {
      // Pairs are integers: that becomes two instructions.
      uint64_t pairs[kVec / 2];
      vec.store(pairs);
      for (uint64_t& pair : pairs) {
        pair = (pair << 32 | pair >> 32) ^ 0x80000000u;
      }
      return Vec::loadu(pairs);
    };
    return {turned(block.low), turned(block.high)};
  }
}
template <typename T>
inline Block each_twice(Vec vec) {
  if constexpr (kEvensAndOdds<T>) {
    return {vec, vec};
  } else {
    uint32_t elements[kVec];
    uint64_t pairs[kVec];
    vec.store(elements);
    for (int64_t i = 0; i < kVec; ++i) {
      pairs[i] = uint64_t(elements[i]) << 32 | elements[i];
    }
    return {Vec::loadu(pairs), Vec::loadu(pairs + kVec / 2)};
  }
}
inline Block tanh(Block a) {
  return {a.low.tanh(), a.high.tanh()};
}
inline Block fma(float a, Block b, Block c) {
  return {at::vec::fmadd(b.low, Vec(a), c.low), at::vec::fmadd(b.high, Vec(a), c.high)};
}

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
