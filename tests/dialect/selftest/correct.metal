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
