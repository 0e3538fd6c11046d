// Reading, summing and writing one row with the vectors of the instruction set this is compiled
// for. A row is handled in blocks of two float vectors: what one vector of a 16-bit dtype holds.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

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

// The value that storing as T and loading again would give.
template <typename T>
inline Block round_to(Block block) {
  if constexpr (std::is_same_v<T, float>) {
    return block;
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
inline Block operator/(Block a, Block b) {
  return {a.low / b.low, a.high / b.high};
}
inline Block operator/(float a, Block b) {
  return {Vec(a) / b.low, Vec(a) / b.high};
}
inline Block exp_of_negative(Block a) {
  return {a.low.neg().exp(), a.high.neg().exp()};
}
inline Block fmadd(Block a, Vec b, Block c) {
  return {at::vec::fmadd(a.low, b, c.low), at::vec::fmadd(a.high, b, c.high)};
}

// Sum of squares of a run of a row. Element i is added to partial sum i % kLanes and the partial
// sums are folded in halves, whatever the vectors: the order depends on dim alone, and instruction
// sets with a fused multiply-add agree to the bit. Every op sums with this, so that fused and
// single ops do.
class SumOfSquares {
 public:
  static constexpr int64_t kLanes = 64;
  static constexpr int64_t kBlocks = kLanes / kBlock;

  // PyTorch 2.8's Vectorized() leaves its lanes undefined.
  SumOfSquares() { std::fill(std::begin(sums_), std::end(sums_), Vec(0.0f)); }

  // Of the block at element i, a multiple of kBlock; kSlot is i / kBlock % kBlocks.
  template <int64_t kSlot>
  void add(Block block) {
    sums_[2 * kSlot] = at::vec::fmadd(block.low, block.low, sums_[2 * kSlot]);
    sums_[2 * kSlot + 1] = at::vec::fmadd(block.high, block.high, sums_[2 * kSlot + 1]);
  }

  float total() {
    for (int64_t vectors = kLanes / kVec; vectors > 1; vectors /= 2) {
      for (int64_t i = 0; i < vectors / 2; ++i) {
        sums_[i] = sums_[i] + sums_[i + vectors / 2];
      }
    }
    // Folds in halves, too.
    return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, sums_[0]);
  }

 private:
  Vec sums_[kLanes / kVec];
};

// load(i) and load(i, n) give the block at element i, and the first n elements of it.

// Of kSteps * kLanes elements from i, a multiple of kLanes.
template <int64_t kSteps, typename Load, int64_t... kSlots>
inline float sum_of_run(int64_t i, Load load,
                        std::integer_sequence<int64_t, kSlots...> /*all blocks of the lanes*/) {
  SumOfSquares sum;
  for (int64_t step = 0; step < kSteps; ++step, i += SumOfSquares::kLanes) {
    (sum.add<kSlots>(load(i + kSlots * kBlock)), ...);
  }
  return sum.total();
}

// Of the elements [i, dim), of which there may be none.
template <typename Load, int64_t... kSlots>
inline float sum_of_rest(int64_t i, int64_t dim, Load load,
                         std::integer_sequence<int64_t, kSlots...> /*all blocks of the lanes*/) {
  SumOfSquares sum;
  for (; i + SumOfSquares::kLanes <= dim; i += SumOfSquares::kLanes) {
    (sum.add<kSlots>(load(i + kSlots * kBlock)), ...);
  }
  const auto add_rest = [&](auto slot) {
    if (i + kBlock <= dim) {
      sum.add<slot()>(load(i));
    } else if (i < dim) {
      sum.add<slot()>(load(i, dim - i));
    }
    i += kBlock;
  };
  (add_rest(std::integral_constant<int64_t, kSlots>()), ...);
  return sum.total();
}

// The error of a float sum grows with its number of steps, so runs of few steps are added in
// double. 16-bit activations, T, allow longer ones: their squares have bits to spare, and an end of
// a run weighs more beside half the bytes.
template <typename T, typename Load>
inline double sum_of_squares(int64_t dim, Load load) {
  constexpr int64_t kSteps = sizeof(T) == sizeof(float) ? 4 : 16;
  constexpr int64_t kRun = kSteps * SumOfSquares::kLanes;
  const auto slots = std::make_integer_sequence<int64_t, SumOfSquares::kBlocks>();
  const int64_t runs = dim / kRun * kRun;
  double sum = sum_of_rest(runs, dim, load, slots);  // first: all that there is in a short row
  for (int64_t i = 0; i < runs; i += kRun) {
    sum += sum_of_run<kSteps>(i, load, slots);
  }
  return sum;
}

// 1 / sqrt(mean of squares + eps), rounded once.
class InverseRms {
 public:
  InverseRms(int64_t dim, float eps)
      : inverse_dim_(1.0 / double(dim)), eps_(eps != 0.0f ? double(eps) : Limits::min()) {}

  float operator()(double sum_of_squares) const {
    // A root and a reciprocal of the same number, so that the processor works at both at once:
    // short rows wait for them. The limits keep 0 and infinity from meeting, as NaN, in the
    // product.
    const double mean = std::min(sum_of_squares * inverse_dim_ + eps_, Limits::max());
    return float(std::sqrt(mean) * (1.0 / mean));
  }

 private:
  using Limits = std::numeric_limits<double>;
  double inverse_dim_, eps_;
};

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
