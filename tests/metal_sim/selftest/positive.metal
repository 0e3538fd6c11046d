// What the translator must understand and the simulated Metal must compute right.
#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_math>
#include "positive.h"
using namespace metal;

// ---- kernels, parameters, instantiations ----

struct Limits {
  enum { kFew = 64, kMany = 256 };
};

struct Args {
  uint count;
  float scale;
};

constant uint mode [[function_constant(kMode)]];
constant float kTable[4] = {1.0f, 2.0f, 3.0f, 4.0f};

METAL_FUNC float pick(constant float* table, uint i) {
  return table[i];
}

template <typename T, typename W, int K, bool V>
[[ kernel, max_total_threads_per_threadgroup(K >= 2 ? Limits::kFew : Limits::kMany) ]] void scale(
    device const T* in [[buffer(kIn)]], device W* out [[buffer(kOut)]],
    constant Args& args [[buffer(kArgs)]], uint3 group [[threadgroup_position_in_grid]],
    ushort thread_index [[thread_index_in_threadgroup]], uint2 size [[threads_per_threadgroup]]) {
  constexpr uint kSlots = 32 * K;
  threadgroup W slots[kSlots][2];
  static_assert(sizeof(slots[0]) == 2 * sizeof(W), "two values per slot");
  for (uint i = thread_index; i < kSlots; i += size.x * size.y) {
    slots[i][0] = W(args.scale);
    slots[i][1] = W(pick(kTable, mode));
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint index = group.x * size.x * size.y + thread_index;
  if (index >= args.count) return;
  const float factor =
      float(slots[index % kSlots][0]) * (V ? float(slots[index % kSlots][1]) : 1.0f);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    out[index] = W(float(in[index]) * factor + 0.5);
  }
}

#define INSTANTIATE(type, T, K)      \
  template [[host_name("scale_" type \
                       "_" #K)]] [[kernel]] decltype(scale<T, T, K, true>) scale<T, T, K, true>;
INSTANTIATE("float", float, 1)
INSTANTIATE("float", float, 2)
INSTANTIATE("half", half, 1)
INSTANTIATE("bfloat", bfloat, 2)

template [[host_name("scale_signature")]] [[kernel]] void scale<float, float, 1, false>(
    device const float* in [[buffer(kIn)]], device float* out [[buffer(kOut)]],
    constant Args& args [[buffer(kArgs)]], uint3 group [[threadgroup_position_in_grid]],
    ushort thread_index [[thread_index_in_threadgroup]], uint2 size [[threads_per_threadgroup]]);

// ---- numbers ----

kernel void half_to_float(device const half* in [[buffer(0)]], device float* out [[buffer(1)]],
                          uint i [[thread_position_in_grid]]) {
  out[i] = in[i];
}
kernel void bfloat_to_float(device const bfloat* in [[buffer(0)]], device float* out [[buffer(1)]],
                            uint i [[thread_position_in_grid]]) {
  out[i] = in[i];
}
kernel void float_to_half(device const float* in [[buffer(0)]], device half* out [[buffer(1)]],
                          uint i [[thread_position_in_grid]]) {
  out[i] = in[i];
}
kernel void float_to_bfloat(device const float* in [[buffer(0)]], device bfloat* out [[buffer(1)]],
                            uint i [[thread_position_in_grid]]) {
  out[i] = bfloat(in[i]);
}
kernel void half_arithmetic(device const half* in [[buffer(0)]], device half* out [[buffer(1)]],
                            uint i [[thread_position_in_grid]]) {
  half a = in[i];
  half b = a * a + 1.0h;
  out[i] = half(float(b) * 0.25f) - a / 3;
}

// ---- vectors and words ----

kernel void copy_words(device const half* in [[buffer(0)]], device half* out [[buffer(1)]],
                       uint i [[thread_position_in_grid]]) {
  const uint4 word = reinterpret_cast<device const uint4*>(in)[i];
  half2 pair = as_type<half2>(word.x);
  uint4 result = uint4(as_type<uint>(half2(pair.y, pair.x)), word.yzw);
  *(device uint4*)(out + 8 * i) = result;
}
kernel void vector_math(device const float4* in [[buffer(0)]], device float* out [[buffer(1)]],
                        uint i [[thread_position_in_grid]]) {
  vec<float, 4> v = in[i];
  v.xy = v.yx;
  v = clamp(v, float4(-2.0f), float4(2.0f)) * 2.0f - 1;
  half4 h = half4(v);
  out[i] = dot(float4(h), float4(1, 2, 3, 4)) + metal::precise::rsqrt(4.0f) +
           select(0.0f, 1.0f, v.z > v.w) + fma(2.0f, 3.0f, 4.0f);
}

// ---- simd functions: one value per function and lane ----

kernel void simd_functions(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                           uint i [[thread_position_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint group [[simdgroup_index_in_threadgroup]],
                           uint groups [[simdgroups_per_threadgroup]]) {
  const float v = in[i];
  device float* row = out + i * 12;
  row[0] = simd_sum(v);
  row[1] = simd_max(v);
  row[2] = simd_min(v);
  row[3] = simd_shuffle_xor(v, 5);
  row[4] = simd_shuffle_up(v, 1);
  row[5] = simd_shuffle_down(v, 2);
  row[6] = simd_shuffle(v, 31 - lane);
  row[7] = simd_broadcast(v, 7);
  row[8] = simd_any(v > 60.0f);
  row[9] = simd_all(v >= 32.0f);
  row[10] = group;
  row[11] = groups;
}

// ---- grids ----

kernel void grid_positions(device uint* out [[buffer(0)]], uint2 p [[thread_position_in_grid]],
                           uint2 n [[threads_per_grid]],
                           uint2 group [[threadgroup_position_in_grid]],
                           uint2 local [[thread_position_in_threadgroup]],
                           uint2 size [[dispatch_threads_per_threadgroup]]) {
  out[p.y * n.x + p.x] = p.x + 100 * p.y;
  if (any(group * size + local != p)) {
    out[p.y * n.x + p.x] = 0xffffffffu;
  }
}

// ---- a buffer that exists only with a function constant ----

constant bool has_bias [[function_constant(1)]];
kernel void optional_buffer(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                            device const float* bias [[buffer(2), function_constant(has_bias)]],
                            uint i [[thread_position_in_grid]]) {
  out[i] = in[i];
  if (has_bias) {
    out[i] += bias[i];
  }
}
