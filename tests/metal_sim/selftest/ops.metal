// Kernels of many ops from few templates: what the translator and the dialect check must both
// understand beyond positive.metal.
#include <metal_stdlib>

#include "ops.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace selftest;

// ---- function constants as bit fields, constants made of them ----

constant uint operand_types [[function_constant(kOperandTypes)]];
constant uint kWeightOperand = 1;
constant bool has_weight = ((operand_types >> (2 * kWeightOperand)) & 3) != kAbsent;
constant bool weight_is_float32 = has_weight && (operand_types & (kFloat32 << 2)) != 0;

METAL_FUNC OperandType type_of_operand(int i) {
  return operand_type(operand_types, i);
}

// Operand i goes to element i.
kernel void operand_table(device uint* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  out[i] = type_of_operand(i) == kAbsent ? 100 + metal::min(operand_types, 7u)
                                         : (operand_types >> (2 * i)) & 3;
}

// ---- structs that hold device pointers, static member templates ----

// Elements `first`, `first + 1`, … of every tensor.
template <typename T, int kCount, bool kVector>
struct Piece {
  typedef Numbers<kCount> Values;
  typedef T Element;

  device const void* inputs[kMaxInputs];
  device const void* weights;
  uint first, count;
  float scale;

  // U is T or float.
  template <typename U>
  static METAL_FUNC Values load(device const void* tensor, uint first, uint count) {
    device const U* elements = reinterpret_cast<device const U*>(tensor) + first;
    Values values;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values.v[i] = kVector || first + i < count ? float(elements[i]) : 0.0f;
    }
    return values;
  }
  METAL_FUNC Values input(int i) const { return load<T>(inputs[i], first, count); }
  METAL_FUNC Values weight() const {
    return weight_is_float32 ? load<float>(weights, first, count) : load<T>(weights, first, count);
  }
  METAL_FUNC void store(device void* tensor, Values values) const {
    device T* elements = static_cast<device T*>(tensor) + first;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (kVector || first + i < count) {
        elements[i] = T(values.v[i]);
      }
    }
  }
};

template <typename Op, typename Row>
struct Applied {
  typedef Outputs<typename Row::Values, Op::kOutputs> Results;
  enum { kScales = Op::kWeights > 0 ? Op::kWeights : 1 };

  static METAL_FUNC Results to(Row row) { return Op::template finish<Row>(row, Op::first(row)); }
};

// The scale makes a detour through threadgroup memory.
template <typename Op, typename T, int kCount, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void row_kernel(
    device const void* x0 [[buffer(kInput0Buffer)]],
    device const void* x1 [[buffer(kInput1Buffer)]],
    device const void* x2 [[buffer(kInput2Buffer)]],
    device const void* weight [[buffer(kWeightBuffer), function_constant(has_weight)]],
    device void* out0 [[buffer(kOutput0Buffer)]], device void* out1 [[buffer(kOutput1Buffer)]],
    constant OpsParams& params [[buffer(kOpsParams)]],
    uint index [[thread_position_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  typedef Piece<T, kCount, kVector> Row;
  typedef Applied<Op, Row> Application;
  threadgroup float scales[kMaxThreads / kSimdWidth][Op::kWeights > 0 ? Op::kWeights : 1], offset;
  if (lane == 0) {
    for (int i = 0; i < Application::kScales; ++i) {
      scales[simdgroup][i] = params.scale - 0.25f;
    }
  }
  if (index == 0) {
    offset = 0.25f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  Row row;
  row.inputs[0] = x0;
  row.inputs[1] = x1;
  row.inputs[2] = x2;
  row.weights = has_weight ? weight : x0;
  row.first = index * kCount;
  row.count = params.count;
  row.scale = scales[simdgroup][Application::kScales - 1] + offset;
  const typename Application::Results results = Application::to(row);
  device void* outputs[kMaxOutputs] = {out0, out1};
  for (int i = 0; i < Op::kOutputs; ++i) {
    row.store(outputs[i], results.values[i]);
  }
}

#define INSTANTIATE(name, ...) \
  template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;
#define ROW_KERNELS(name, Op, type, T)                                   \
  INSTANTIATE(name "_row_2_" type "_vector", row_kernel<Op, T, 2, true>) \
  INSTANTIATE(name "_row_3_" type "_scalar", row_kernel<Op, T, 3, false>)
#define OP(name, Op)                      \
  ROW_KERNELS(name, Op, "float32", float) \
  ROW_KERNELS(name, Op, "bfloat16", bfloat)
OP("weighted_sum", WeightedSum)
OP("product_and_sum", ProductAndSum)

// ---- class templates as template arguments ----

template <typename T>
struct Doubled {
  static METAL_FUNC T of(T x) { return T(x + x); }
};
template <typename T>
struct Squared {
  static METAL_FUNC T of(T x) { return T(x * x); }
};

template <template <typename> class Op, typename T>
[[kernel]] void map(device const void* in [[buffer(0)]], device void* out [[buffer(1)]],
                    uint i [[thread_position_in_grid]]) {
  static_cast<device T*>(out)[i] = Op<T>::of(static_cast<device const T*>(in)[i]);
}
#define MAP(name, Op) INSTANTIATE("map_" name "_half", map<Op, half>)
MAP("doubled", Doubled)
MAP("squared", Squared)

// ---- math ----

kernel void math_functions(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                           uint i [[thread_position_in_grid]]) {
  const float x = in[i];
  device float* row = out + i * 11;
  row[0] = metal::precise::exp(x);
  row[1] = metal::precise::tanh(x);
  row[2] = metal::precise::divide(x, 3.0f);
  row[3] = metal::min(x, 0.5f);
  row[4] = metal::max(x, 0.5f);
  row[5] = float(metal::min(i, 40u));
  row[6] = float(clamp(i, 7u, 50u));
  row[7] = clamp(x, -1.0f, 1.0f);
  row[8] = float(metal::max(int(i) - 32, -5));
  row[9] = metal::divide(1.0f, x);
  row[10] = 1.0f / (1.0f + metal::precise::exp(-x));
}
