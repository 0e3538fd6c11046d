// Keeps to Metal's dialect, with one of everything that kernels are made of. The other files here
// each break one rule.
#include <metal_stdlib>

#include "params.h"

using namespace metal;

constant bool has_weight [[function_constant(kHasWeight)]];
constant uint kWidth = 32;

template <typename T>
struct Element;

template <>
struct Element<float> {
  enum { kPerWord = 4 };
  static METAL_FUNC void unpack(uint4 word, thread float* v) {
    const float4 f = as_type<float4>(word);
    v[0] = f.x;
    v[1] = f.y;
    v[2] = f.z;
    v[3] = f.w;
  }
};

template <>
struct Element<bfloat> {
  enum { kPerWord = 8 };
  static METAL_FUNC void unpack(uint4 word, thread float* v) {
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = as_type<float>(word[i] << 16);
      v[2 * i + 1] = as_type<float>(word[i] & 0xffff0000u);
    }
  }
};

template <typename T>
struct Word {
  uint4 bits;
  float values[Element<T>::kPerWord];

  METAL_FUNC void load(device const T* row, uint i) {
    bits = reinterpret_cast<device const uint4*>(row)[i];
    Element<T>::unpack(bits, values);
  }
  METAL_FUNC float sum() const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Element<T>::kPerWord; ++i) {
      sum = fma(values[i], values[i], sum);
    }
    return sum;
  }
};

// Constructors, operators, members of temporaries, braces.
struct Range {
  uint first, last;
  METAL_FUNC Range(uint a, uint b) : first(a), last(b) {}
  METAL_FUNC explicit Range(uint a) : first(a), last(a + 1) {}
  METAL_FUNC Range operator+(uint n) const { return Range(first + n, last + n); }
  METAL_FUNC thread Range& operator+=(uint n) {
    first += n;
    return *this;
  }
  friend METAL_FUNC Range operator*(Range a, uint n) { return Range(a.first * n, a.last * n); }
  METAL_FUNC auto size() const { return last - first; }
  template <typename T>
  METAL_FUNC T start_as() const {
    return T(first);
  }
};

struct Pair {
  struct Half {
    float v = 0.0f;
  };
  float v[2];
  METAL_FUNC float sum() const { return v[0] + v[1]; }
};
constant Pair kPairs[2] = {{{1.0f, 2.0f}}, {{3.0f, 4.0f}}};

METAL_FUNC Pair swapped(Pair pair) {
  return {{pair.v[1], pair.v[0]}};
}
template <int i, bool kSum>
METAL_FUNC float element(Pair pair) {
  return kSum ? pair.sum() : pair.v[i];
}
// Two temporaries, or two variables.
METAL_FUNC Pair chosen(Pair pair, Pair other, int n) {
  const float v = n < 3 ? element<0, true>(pair) : n > 4 ? metal::precise::exp(1.0f) : pair.v[1];
  const Pair either = n > 3 ? pair : other;
  return n > 1 ? swapped(either) : swapped(Pair{{v, n < 1 && v > 1.0f ? 1.0f : v}});
}

kernel void structs(device float* x [[buffer(0)]], constant Pair& from [[buffer(1)]],
                    device const float* more [[buffer(2), function_constant(has_weight)]]) {
#pragma METAL fp math_mode(safe)
  threadgroup Pair shared[2 > 1 ? 2 : 1], other;
  Range range = Range(1, 2) + 3u + 4u;
  range += 2;
  shared[0] = kPairs[range.size()];
  shared[1] = from;
  other = shared[0];
  const Pair pair = shared[1];
  x[0] = swapped(pair).sum() + Pair{{1.0f, 2.0f}}.sum() + (range * 2u).start_as<float>();
  x[1] = chosen(from, pair, 2).v[0] + swapped(other).v[0] + Pair::Half().v;
  x[2] = has_weight ? more[0] : metal::precise::divide(float(range.size()), 3.0f);
}

METAL_FUNC float threadgroup_sum(float v, threadgroup float* partial, uint simdgroup, uint lane) {
  v = simd_sum(v);
  if (lane == 0) {
    partial[simdgroup] = v;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_sum(partial[lane]) + simd_shuffle_xor(0.0f, ushort(1));
}

template <typename T, int kWords, bool kScale>
[[kernel, max_total_threads_per_threadgroup(1024)]] void norm(
    device const T* x [[buffer(0)]], device T* out [[buffer(1)]],
    constant Params& params [[buffer(kParams)]], uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float partial[kWidth], unused;
  threadgroup Rows shared_rows;
  shared_rows = params.rows;
  Word<T> words[kWords];
  const Rows rows = params.rows;
  for (int k = 0; k < kWords; ++k) {
    words[k].load(x + row_start(rows, row), thread_index + k);
  }
  unused = words[0].sum();
  const float sum = threadgroup_sum(unused, partial, simdgroup, lane);
  const float scale = metal::precise::rsqrt(sum + params.eps);
  for (uint i = thread_index; i < rows.dim; i += kWidth) {
    const float v = float(x[i]) * scale;
    out[row_start(params.rows, row) + i] = T(kScale && has_weight ? v * 2.0f : v);
  }
}

kernel void halves(device half4* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  const half h = half(float(x[i].x));
  const bfloat2 pair = bfloat2(bfloat(1.0f), bfloat(h));
  x[i] = half4(h, h, x[i].zw) * half4(2.0h) + half(pair.y) + half(as_type<uint>(pair));
}

#define INSTANTIATE(name, ...) \
  template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;
INSTANTIATE("norm_float", norm<float, 2, true>)
INSTANTIATE("norm_bfloat", norm<bfloat, 2, false>)
