// out = x * rsqrt(mean(x^2) + eps) * (weight + weight_offset), row by row.
//
// Three kernels by length of the row, each with vector and scalar access:
//   rms_norm_simd  up to 64 words: a few lanes of a SIMD group share a row, no barrier
//   rms_norm_row   a threadgroup has the row in its registers: memory is read once
//   rms_norm_loop  longer than the registers hold: memory is read twice

#include "row.h"

template <typename T, typename W, bool kVector>
METAL_FUNC uint4 normalized(uint4 word, float scale, WeightWord<T, W, kVector> weight,
                            float weight_offset) {
  const int n = Element<T>::kPerWord;
  float v[n];
  Element<T>::unpack(word, v);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    v[i] *= scale;
  }
  if (round_before_weight) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      v[i] = Element<T>::rounded(v[i]);
    }
  }
  if (has_weight) {
    float w[n];
    weight.unpack(w);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      v[i] *= w[i] + weight_offset;
    }
  }
  return Element<T>::pack(v);
}

// Words `first`, `first + step`, … of one row, kWords of them.
template <typename T, typename W, int kWords, bool kVector>
struct RegisterRow {
  uint4 words[kWords];
  WeightWord<T, W, kVector> weights[kWords];
  uint first, step, dim;

  METAL_FUNC bool holds(int k) const { return (first + k * step) * Element<T>::kPerWord < dim; }

  METAL_FUNC void load(device const T* row) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      words[k] = holds(k) ? Access<T, kVector>::load(row, first + k * step, dim) : uint4(0);
    }
  }

  METAL_FUNC void load_weights(device const W* weight) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      if (holds(k)) {
        weights[k].load(weight, first + k * step, dim);
      }
    }
  }

  METAL_FUNC float partial_sum() const {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      sum += sum_of_squares<T>(words[k]);
    }
    return sum;
  }

  METAL_FUNC void store(device T* out, float scale, float weight_offset) const {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      if (holds(k)) {
        Access<T, kVector>::store(
            out, first + k * step, dim,
            normalized<T, W, kVector>(words[k], scale, weights[k], weight_offset));
      }
    }
  }
};

template <typename T, typename W, int kWords, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void rms_norm_simd(
    device const T* x [[buffer(kRmsNormX)]], device const W* weight [[buffer(kRmsNormWeight)]],
    device T* out [[buffer(kRmsNormOut)]],
    constant RmsNormParams& params [[buffer(kRmsNormParams)]],
    uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]]) {
  // In units of rows before lanes, so that the product with threads cannot overflow.
  const uint row_in_dispatch =
      threadgroup_index * (threads / lanes_per_row) + thread_index / lanes_per_row;
  // Lanes past the last row keep it company: SIMD functions need them all.
  const bool active = row_in_dispatch < params.rows;
  const ulong row = params.first_row + (active ? row_in_dispatch : params.rows - 1);

  RegisterRow<T, W, kWords, kVector> registers;
  registers.first = thread_index % lanes_per_row;
  registers.step = lanes_per_row;
  registers.dim = params.dim;
  registers.load(x + row_offset(params.x_rows, row));
  if (has_weight) {
    registers.load_weights(weight);
  }
  const float sum = lanes_sum(registers.partial_sum(), lanes_per_row);
  const float scale = inverse_rms(sum, params.inverse_dim, params.eps);
  if (active) {
    registers.store(out + row * params.dim, scale, params.weight_offset);
  }
}

template <typename T, typename W, int kWords, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void rms_norm_row(
    device const T* x [[buffer(kRmsNormX)]], device const W* weight [[buffer(kRmsNormWeight)]],
    device T* out [[buffer(kRmsNormOut)]],
    constant RmsNormParams& params [[buffer(kRmsNormParams)]],
    uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float partial[kMaxSimdgroups];
  const ulong row = params.first_row + threadgroup_index;

  RegisterRow<T, W, kWords, kVector> registers;
  registers.first = thread_index;
  registers.step = threads;
  registers.dim = params.dim;
  registers.load(x + row_offset(params.x_rows, row));
  if (has_weight && prefetch_weight) {
    registers.load_weights(weight);
  }
  const float sum = threadgroup_sum(registers.partial_sum(), partial, simdgroup, lane, simdgroups);
  const float scale = inverse_rms(sum, params.inverse_dim, params.eps);
  if (has_weight && !prefetch_weight) {
    registers.load_weights(weight);
  }
  registers.store(out + row * params.dim, scale, params.weight_offset);
}

template <typename T, typename W, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void rms_norm_loop(
    device const T* x [[buffer(kRmsNormX)]], device const W* weight [[buffer(kRmsNormWeight)]],
    device T* out [[buffer(kRmsNormOut)]],
    constant RmsNormParams& params [[buffer(kRmsNormParams)]],
    uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float partial[kMaxSimdgroups];
  const ulong row = params.first_row + threadgroup_index;
  const uint dim = params.dim;
  const uint words = (dim - 1) / Element<T>::kPerWord + 1;
  device const T* x_row = x + row_offset(params.x_rows, row);
  device T* out_row = out + row * dim;

  float sum = 0.0f;
  for (uint word = thread_index; word < words; word += threads) {
    sum += sum_of_squares<T>(Access<T, kVector>::load(x_row, word, dim));
  }
  sum = threadgroup_sum(sum, partial, simdgroup, lane, simdgroups);
  const float scale = inverse_rms(sum, params.inverse_dim, params.eps);
  for (uint word = thread_index; word < words; word += threads) {
    WeightWord<T, W, kVector> weights;
    if (has_weight) {
      weights.load(weight, word, dim);
    }
    const uint4 value = Access<T, kVector>::load(x_row, word, dim);
    Access<T, kVector>::store(
        out_row, word, dim, normalized<T, W, kVector>(value, scale, weights, params.weight_offset));
  }
}

// ---- names that the host looks up: kernel, words, x, weight, access --------------------------

#define INSTANTIATE(name, ...) \
  template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;

#define INSTANTIATE_ACCESS(x, T, weight, W, access, kVector)                               \
  INSTANTIATE("rms_norm_simd_2_" x "_" weight "_" access, rms_norm_simd<T, W, 2, kVector>) \
  INSTANTIATE("rms_norm_row_2_" x "_" weight "_" access, rms_norm_row<T, W, 2, kVector>)   \
  INSTANTIATE("rms_norm_row_4_" x "_" weight "_" access, rms_norm_row<T, W, 4, kVector>)   \
  INSTANTIATE("rms_norm_loop_" x "_" weight "_" access, rms_norm_loop<T, W, kVector>)

#define INSTANTIATE_TYPES(x, T, weight, W)             \
  INSTANTIATE_ACCESS(x, T, weight, W, "scalar", false) \
  INSTANTIATE_ACCESS(x, T, weight, W, "vector", true)

INSTANTIATE_TYPES("float32", float, "float32", float)
INSTANTIATE_TYPES("float16", half, "float16", half)
INSTANTIATE_TYPES("float16", half, "float32", float)
INSTANTIATE_TYPES("bfloat16", bfloat, "bfloat16", bfloat)
INSTANTIATE_TYPES("bfloat16", bfloat, "float32", float)
