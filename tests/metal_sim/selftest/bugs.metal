// One planted bug per kernel, with its corrected twin. The lines that the checkers must name end
// with a comment `BUG`.
#include <metal_stdlib>
using namespace metal;

#define THREAD uint i [[thread_position_in_threadgroup]]
#define IN_OUT device const float *x [[buffer(0)]], device float *y [[buffer(1)]]

// ---- device memory ----

kernel void read_past_end_bug(IN_OUT, THREAD) {
  y[i] = x[i + 1];  // BUG
}
kernel void read_past_end_fixed(IN_OUT, THREAD, uint n [[threads_per_threadgroup]]) {
  y[i] = x[i + 1 < n ? i + 1 : i];
}

kernel void write_past_end_bug(IN_OUT, THREAD) {
  y[i + 1] = x[i];  // BUG
}
kernel void write_past_end_fixed(IN_OUT, THREAD) {
  y[i] = x[i];
}

struct Tensors {
  device const void* inputs[2];
};
struct Second {
  enum { kInput = 1 };
  template <typename T, typename Row>
  static METAL_FUNC T element(Row row, uint i) {
    return reinterpret_cast<device const T*>(row.inputs[kInput])[i];  // BUG
  }
};
template <typename Op, typename T, int kStep>
[[kernel]] void past_void_pointer(device const void* x [[buffer(0)]], device void* y [[buffer(1)]],
                                  THREAD) {
  const Tensors tensors = {{y, x}};
  static_cast<device T*>(y)[i] = Op::template element<T>(tensors, i + kStep);
}
#define PAST_VOID_POINTER(name, kStep)                         \
  template [[host_name("past_void_pointer_" name)]] [[kernel]] \
  decltype(past_void_pointer<Second, float, kStep>) past_void_pointer<Second, float, kStep>;
PAST_VOID_POINTER("bug", 1)
PAST_VOID_POINTER("fixed", 0)

kernel void misaligned_vector_bug(IN_OUT, THREAD) {
  if (i != 0) return;
  device const float4* v = reinterpret_cast<device const float4*>(x + 1);
  float4 word = v[0];  // BUG
  y[0] = word.x + word.w;
}
kernel void misaligned_vector_fixed(IN_OUT, THREAD) {
  if (i != 0) return;
  device const float4* v = reinterpret_cast<device const float4*>(x + 4);
  float4 word = v[0];
  y[0] = word.x + word.w;
}

kernel void misaligned_word_bug(IN_OUT, THREAD) {
  if (i != 0) return;
  device const uint4* v = (device const uint4*)(x + 2);
  y[0] = as_type<float>(v[0].y);  // BUG
}
kernel void misaligned_word_fixed(IN_OUT, THREAD) {
  if (i != 0) return;
  device const uint4* v = (device const uint4*)(x + 8);
  y[0] = as_type<float>(v[0].y);
}

// ---- threadgroup memory ----

kernel void array_overflow_bug(IN_OUT, THREAD) {
  threadgroup float scratch[32];
  scratch[i] = x[i];  // BUG
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = scratch[i ^ 1];
}
kernel void array_overflow_fixed(IN_OUT, THREAD) {
  threadgroup float scratch[64];
  scratch[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = scratch[i ^ 1];
}

METAL_FUNC void put(threadgroup float* values, uint i, float value) {
  values[i] = value;  // BUG
}
kernel void overflow_in_helper_bug(IN_OUT, THREAD) {
  threadgroup float first[63], second[64];
  put(first, i, x[i]);
  put(second, i, x[i]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = first[i ^ 1] + second[i];
}
kernel void overflow_in_helper_fixed(IN_OUT, THREAD) {
  threadgroup float first[64], second[64];
  put(first, i, x[i]);
  put(second, i, x[i]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = first[i ^ 1] + second[i];
}

kernel void dynamic_overflow_bug(IN_OUT, threadgroup float* scratch [[threadgroup(0)]], THREAD) {
  scratch[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = scratch[i + 1];  // BUG
}
kernel void dynamic_overflow_fixed(IN_OUT, threadgroup float* scratch [[threadgroup(0)]], THREAD) {
  scratch[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = scratch[i ^ 1];
}

template <typename T, int Written>
[[kernel]] void uninitialised(IN_OUT, THREAD) {
  threadgroup T scratch[64];
  if (i < uint(Written)) {
    scratch[i] = T(x[i]);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = float(max(scratch[i], T(0)));  // BUG
}
#define UNINITIALISED(name, T)                                       \
  template [[host_name("uninitialised_" #name "_bug")]] [[kernel]]   \
  decltype(uninitialised<T, 60>) uninitialised<T, 60>;               \
  template [[host_name("uninitialised_" #name "_fixed")]] [[kernel]] \
  decltype(uninitialised<T, 64>) uninitialised<T, 64>;
UNINITIALISED(float, float)
UNINITIALISED(uint, uint)
UNINITIALISED(ushort, ushort)

// ---- races ----

kernel void missing_barrier_bug(IN_OUT, THREAD) {
  threadgroup float scratch[64];
  scratch[i] = x[i];
  threadgroup_barrier(mem_flags::mem_none);
  y[i] = scratch[63 - i];  // BUG
}
kernel void missing_barrier_fixed(IN_OUT, THREAD) {
  threadgroup float scratch[64];
  scratch[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = scratch[63 - i];
}

METAL_FUNC float sum_of_all(float v, threadgroup float* partial, uint i) {
  v = simd_sum(v);
  if (i % 32 == 0) {
    partial[i / 32] = v;  // BUG
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return partial[0] + partial[1];
}
kernel void reused_scratch_bug(IN_OUT, THREAD) {
  threadgroup float partial[2];
  float a = sum_of_all(x[i], partial, i);
  float b = sum_of_all(x[i] * x[i], partial, i);
  y[i] = a + b;
}
kernel void reused_scratch_fixed(IN_OUT, THREAD) {
  threadgroup float partial[2], other[2];
  float a = sum_of_all(x[i], partial, i);
  float b = sum_of_all(x[i] * x[i], other, i);
  y[i] = a + b;
}

kernel void simd_race_bug(IN_OUT, THREAD) {
  threadgroup float scratch[64];
  scratch[i] = x[i];
  y[i] = scratch[i & ~1u];  // BUG
}
kernel void simd_race_fixed(IN_OUT, THREAD) {
  threadgroup float scratch[64];
  scratch[i] = x[i];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = scratch[i & ~1u];
}

// A race in device memory: invisible to the race check, but results change with the thread order.
kernel void device_race_bug(IN_OUT, THREAD) {
  y[i] = x[i];
  if (i < 63) {
    y[i] = x[i] + y[i + 1];
  }
}
kernel void device_race_fixed(IN_OUT, THREAD) {
  y[i] = x[i];
  if (i < 63) {
    y[i] = x[i] + x[i + 1];
  }
}

// ---- barriers and simd functions ----

kernel void returned_before_barrier_bug(IN_OUT, THREAD) {
  if (i >= 40) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
  y[i] = x[i];
}
kernel void returned_before_barrier_fixed(IN_OUT, THREAD) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i >= 40) return;
  y[i] = x[i];
}

kernel void two_barriers_bug(IN_OUT, THREAD) {
  if (i < 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // BUG
  } else {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  y[i] = x[i];
}
kernel void two_barriers_fixed(IN_OUT, THREAD) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = x[i];
}

kernel void returned_before_simd_bug(IN_OUT, THREAD) {
  if (i % 32 == 5) return;
  y[i] = simd_sum(x[i]);  // BUG
}
kernel void returned_before_simd_fixed(IN_OUT, THREAD) {
  float sum = simd_sum(x[i]);
  if (i % 32 == 5) return;
  y[i] = sum;
}

kernel void simd_in_branches_bug(IN_OUT, THREAD) {
  float v = x[i];
  if (i % 2 == 0) {
    v = simd_sum(v);  // BUG
  } else {
    v = simd_max(v);
  }
  y[i] = v;
}
kernel void simd_in_branches_fixed(IN_OUT, THREAD) {
  float sum = simd_sum(x[i]), largest = simd_max(x[i]);
  y[i] = i % 2 == 0 ? sum : largest;
}

// ---- host and kernel disagree ----

struct Args {
  uint count;
  float scale;
};
kernel void scaled(IN_OUT, constant Args& args [[buffer(2)]], THREAD) {
  if (i < args.count) {
    y[i] = x[i] * args.scale;
  }
}

constant bool negate [[function_constant(3)]];
constant float factor [[function_constant(4)]];
kernel void with_constants(IN_OUT, THREAD) {
  y[i] = (negate ? -x[i] : x[i]) * factor;
}
kernel void with_optional_constant(IN_OUT, THREAD) {
  y[i] = is_function_constant_defined(factor) ? x[i] * factor : x[i];
}

[[max_total_threads_per_threadgroup(32)]] kernel void few_threads(IN_OUT, THREAD) {
  y[i] = x[i];
}

kernel void much_threadgroup_memory(IN_OUT, THREAD) {
  threadgroup float scratch[8193];
  scratch[i] = x[i];
  y[i] = scratch[i];
}
