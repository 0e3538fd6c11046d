// The kernels of every op: a formula (formulas/) applied to the rows of its tensors.
//
// Three of them by length of the row, each with vector and scalar access:
//   norm_simd  up to 64 words: a few lanes of a SIMD group share a row, no barrier
//   norm_row   a threadgroup has the row in its registers: memory is read once
//   norm_loop  longer than the registers hold: memory is read again for every sum and the outputs
#pragma once

#include "formulas/formula.h"
#include "row.h"

constant uint operand_types [[function_constant(kOperandTypesConstant)]];
constant bool scale_is_scalar [[function_constant(kScaleIsScalarConstant)]];
constant uint activation [[function_constant(kActivationConstant)]];
constant bool round_before_weight [[function_constant(kRoundBeforeWeightConstant)]];
constant bool round_intermediates [[function_constant(kRoundIntermediatesConstant)]];
constant bool use_prefetch [[function_constant(kPrefetchConstant)]];
constant uint lanes_per_row [[function_constant(kLanesPerRowConstant)]];
constant bool has_input1 [[function_constant(kHasInput1Constant)]];
constant bool has_input2 [[function_constant(kHasInput2Constant)]];
constant bool has_weight0 [[function_constant(kHasWeight0Constant)]];
constant bool has_weight1 [[function_constant(kHasWeight1Constant)]];
constant bool has_weight2 [[function_constant(kHasWeight2Constant)]];
constant bool has_weight3 [[function_constant(kHasWeight3Constant)]];
constant bool has_scale [[function_constant(kHasScaleConstant)]];
constant bool has_routing_weights [[function_constant(kHasRoutingWeightsConstant)]];
constant bool has_output1 [[function_constant(kHasOutput1Constant)]];
constant bool has_output2 [[function_constant(kHasOutput2Constant)]];
constant bool has_output3 [[function_constant(kHasOutput3Constant)]];

// Of an operand, which may be of any type.
METAL_FUNC float element(device const void* p, int operand, uint i) {
  switch (operand_type(operand_types, operand)) {
    case kFloat16:
      return float(static_cast<device const half*>(p)[i]);
    case kBFloat16:
      return float(static_cast<device const bfloat*>(p)[i]);
    default:
      return static_cast<device const float*>(p)[i];
  }
}

// The tensors of an op from their first row, or from a later one.
template <typename T>
struct Tensors {
  device const T* inputs[kMaxInputs];
  device const void* operands[kOperands];
  device T* outputs[kMaxOutputs];

  template <typename Formula>
  METAL_FUNC void move_to_row(ulong row, constant NormParams& params) {
#pragma unroll
    for (int i = 0; i < Formula::kInputs; ++i) {
      inputs[i] += row_offset(params.inputs[i], row);
    }
    move_operand(kScale, params.scale, row);
    move_operand(kRoutingWeights, params.routing_weights, row);
#pragma unroll
    for (int i = 0; i < Formula::kOutputs; ++i) {
      outputs[i] += row * params.dim;
    }
  }

  METAL_FUNC void move_operand(int i, RowLayout rows, ulong row) {
    const OperandType type = operand_type(operand_types, i);
    if (type != kAbsent) {
      const long offset = row_offset(rows, row) * element_size(type);
      operands[i] = static_cast<device const uchar*>(operands[i]) + offset;
    }
  }
};

// What belongs to one word of T: a word of the operand; two if it is float32 and T has 16 bits;
// half a word if it has 16 bits and T is float32.
template <typename T, bool kVector>
struct OperandWord {
  enum { kValues = Element<T>::kPerWord };
  uint4 words[kValues / Element<float>::kPerWord];

  METAL_FUNC void load(device const void* p, int operand, uint word, uint dim) {
    switch (operand_type(operand_types, operand)) {
      case kFloat16:
        load_as(static_cast<device const half*>(p), word, dim);
        break;
      case kBFloat16:
        load_as(static_cast<device const bfloat*>(p), word, dim);
        break;
      default:
        load_as(static_cast<device const float*>(p), word, dim);
    }
  }

  METAL_FUNC ValuesOf<T> values(int operand) const {
    switch (operand_type(operand_types, operand)) {
      case kFloat16:
        return values_of<half>();
      case kBFloat16:
        return values_of<bfloat>();
      default:
        return values_of<float>();
    }
  }

  template <typename U>
  METAL_FUNC void load_as(device const U* row, uint word, uint dim) {
    enum { kWords = int(kValues) / int(Element<U>::kPerWord) };
    if (kWords == 0) {
      words[0] = Access<U, kVector>::load_half(row, word, dim);
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = Access<U, kVector>::load(row, word * kWords + i, dim);
    }
  }

  template <typename U>
  METAL_FUNC ValuesOf<T> values_of() const {
    enum { kPerWord = Element<U>::kPerWord };
    enum { kUsed = int(kPerWord) < int(kValues) ? int(kPerWord) : int(kValues) };
    ValuesOf<T> result;
#pragma unroll
    for (int i = 0; i < int(kValues) / int(kUsed); ++i) {
      float v[kPerWord];
      Element<U>::unpack(words[i], v);
#pragma unroll
      for (int k = 0; k < kUsed; ++k) {
        result.v[i * kUsed + k] = v[k];
      }
    }
    return result;
  }
};

// Everything that a formula may ask for at one word, loaded ahead of the first reduction when rows
// are too few to hide how long memory takes.
template <typename Formula, typename T, bool kVector>
struct Prefetched {
  uint4 inputs[Formula::kInputs];
  OperandWord<T, kVector> weights[Formula::kWeights];
  OperandWord<T, kVector> scale;

  METAL_FUNC void load(thread const Tensors<T>& tensors, uint word, uint dim) {
#pragma unroll
    for (int i = 0; i < Formula::kInputs; ++i) {
      inputs[i] = Access<T, kVector>::load(tensors.inputs[i], word, dim);
    }
#pragma unroll
    for (int i = 0; i < Formula::kWeights; ++i) {
      if (operand_type(operand_types, i) != kAbsent) {
        weights[i].load(tensors.operands[i], i, word, dim);
      }
    }
    if (operand_type(operand_types, kScale) != kAbsent && !scale_is_scalar) {
      scale.load(tensors.operands[kScale], kScale, word, dim);
    }
  }
};

// A word of a row as formulas see it.
template <typename Formula, typename T, bool kVector>
struct RowWord {
  typedef ValuesOf<T> Values;

  thread const Tensors<T>* tensors;
  thread const Prefetched<Formula, T, kVector>* prefetched;
  constant NormParams* params;
  uint word;
  float inverse_rms;

  METAL_FUNC Values input(int i) const {
    Values result;
    Element<T>::unpack(use_prefetch ? prefetched->inputs[i] : load(tensors->inputs[i]), result.v);
    return result;
  }

  METAL_FUNC Values norm(Values x, int weight) const {
    x = x * inverse_rms;
    if (operand_type(operand_types, weight) == kAbsent) {
      return x;
    }
    if (round_before_weight) {
      x = x.rounded();
    }
    return x * (operand(prefetched->weights[weight], weight) + params->weight_offset);
  }

  METAL_FUNC Values scaled(Values x) const {
    if (operand_type(operand_types, kScale) == kAbsent) {
      return x;
    }
    return x * scale();
  }

  METAL_FUNC Values activated_scale() const {
    if (activation == kNoActivation) {
      return scale();
    }
    const Values activated = mlxnorm::activated(activation, scale());
    if (!round_intermediates) {
      return activated;
    }
    return rounded_as(kScale, activated);
  }

  METAL_FUNC Values expert_sum() const {
    Values sum = splat<T>(0.0f);
    for (uint k = 0; k < params->top_k; ++k) {
      Values expert;
      Element<T>::unpack(load(tensors->inputs[0] + k * params->expert_stride), expert.v);
      sum = fma(element(tensors->operands[kRoutingWeights], kRoutingWeights, k), expert, sum);
    }
    return sum;
  }

  METAL_FUNC Values rounded(Values x) const {
    if (round_intermediates) {
      return x.rounded();
    }
    return x;
  }

  // ---- for the kernels ------------------------------------------------------------------------

  METAL_FUNC void store(Outputs<Values, Formula::kOutputs> outputs) const {
#pragma unroll
    for (int i = 0; i < Formula::kOutputs; ++i) {
      Access<T, kVector>::store(tensors->outputs[i], word, params->dim,
                                Element<T>::pack(outputs.values[i].v));
    }
  }

  METAL_FUNC uint4 load(device const T* row) const {
    return Access<T, kVector>::load(row, word, params->dim);
  }

  METAL_FUNC Values operand(thread const OperandWord<T, kVector>& ahead, int i) const {
    if (use_prefetch) {
      return ahead.values(i);
    }
    OperandWord<T, kVector> now;
    now.load(tensors->operands[i], i, word, params->dim);
    return now.values(i);
  }

  METAL_FUNC Values rounded_as(int operand, Values x) const {
    switch (operand_type(operand_types, operand)) {
      case kFloat16:
        return x.template rounded_as<half>();
      case kBFloat16:
        return x.template rounded_as<bfloat>();
      default:
        return x;
    }
  }

  METAL_FUNC Values scale() const {
    return scale_is_scalar ? splat<T>(element(tensors->operands[kScale], kScale, 0))
                           : operand(prefetched->scale, kScale);
  }
};

template <typename Formula, typename T, bool kVector>
METAL_FUNC RowWord<Formula, T, kVector> row_word(
    thread const Tensors<T>& tensors, thread const Prefetched<Formula, T, kVector>& prefetched,
    constant NormParams& params, uint word) {
  RowWord<Formula, T, kVector> result;
  result.tensors = &tensors;
  result.prefetched = &prefetched;
  result.params = &params;
  result.word = word;
  result.inverse_rms = 0.0f;
  return result;
}

// ---- sums over the threads that share a row ---------------------------------------------------

struct SimdgroupLanes {
  METAL_FUNC float sum(float v, int /*which*/) const { return lanes_sum(v, lanes_per_row); }
};

// Sums have scratch of their own: see threadgroup_sum.
struct Threadgroup {
  threadgroup float* scratch;
  uint simdgroup, lane, simdgroups;

  METAL_FUNC float sum(float v, int which) const {
    return threadgroup_sum(v, scratch + which * kMaxSimdgroups, simdgroup, lane, simdgroups);
  }
};

METAL_FUNC Threadgroup threadgroup_with(threadgroup float* scratch, uint simdgroup, uint lane,
                                        uint simdgroups) {
  Threadgroup result;
  result.scratch = scratch;
  result.simdgroup = simdgroup;
  result.lane = lane;
  result.simdgroups = simdgroups;
  return result;
}

// ---- one row ------------------------------------------------------------------------------------

// Formula::second, which only formulas of two sums have.
template <typename Formula, int kSums = Formula::kSums>
struct SecondSum {
  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values values(Row row, Values first) {
    return Formula::second(row, first);
  }
};
template <typename Formula>
struct SecondSum<Formula, 1> {
  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values values(Row /*row*/, Values first) {
    return first;
  }
};

// Of words first, first + step, … kWords of them are this thread's. `writes`: it is not just there
// to complete a SIMD group.
template <typename Formula, typename T, int kWords, bool kVector, typename Threads>
METAL_FUNC void norm_in_registers(thread const Tensors<T>& tensors, constant NormParams& params,
                                  uint first, uint step, Threads threads, bool writes) {
  Prefetched<Formula, T, kVector> prefetched[kWords];
  RowWord<Formula, T, kVector> rows[kWords];
  bool holds[kWords];
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    const uint word = first + k * step;
    holds[k] = word * Element<T>::kPerWord < params.dim;
    rows[k] = row_word(tensors, prefetched[k], params, word);
    if (use_prefetch && holds[k]) {
      prefetched[k].load(tensors, word, params.dim);
    }
  }

  ValuesOf<T> values[kWords];
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    values[k] = holds[k] ? Formula::first(rows[k]) : splat<T>(0.0f);
    sum += sum_of_squares(values[k]);
  }
  float scale = inverse_rms(threads.sum(sum, 0), params.inverse_dim, params.eps);

  if (Formula::kSums == 2) {
    sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      if (holds[k]) {
        rows[k].inverse_rms = scale;
        values[k] = SecondSum<Formula>::values(rows[k], values[k]);
      }
      sum += sum_of_squares(values[k]);
    }
    scale = inverse_rms(threads.sum(sum, 1), params.inverse_dim, params.eps);
  }

#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    if (holds[k] && writes) {
      rows[k].inverse_rms = scale;
      rows[k].store(Formula::finish(rows[k], values[k]));
    }
  }
}

// Words thread, thread + threads, … of the row are this thread's, however many.
template <typename Formula, typename T, bool kVector>
METAL_FUNC void norm_in_memory(thread const Tensors<T>& tensors, constant NormParams& params,
                               uint thread_index, uint thread_count, Threadgroup threads) {
  const uint words = (params.dim - 1) / Element<T>::kPerWord + 1;
  Prefetched<Formula, T, kVector> nothing;
  RowWord<Formula, T, kVector> row = row_word(tensors, nothing, params, 0);

  CompensatedSum first = {0.0f, 0.0f};
  for (row.word = thread_index; row.word < words; row.word += thread_count) {
    first.add(sum_of_squares(Formula::first(row)));
  }
  const float scale = inverse_rms(threads.sum(first.sum, 0), params.inverse_dim, params.eps);

  float last_scale = scale;
  if (Formula::kSums == 2) {
    row.inverse_rms = scale;
    CompensatedSum second = {0.0f, 0.0f};
    for (row.word = thread_index; row.word < words; row.word += thread_count) {
      second.add(sum_of_squares(SecondSum<Formula>::values(row, Formula::first(row))));
    }
    last_scale = inverse_rms(threads.sum(second.sum, 1), params.inverse_dim, params.eps);
  }

  for (row.word = thread_index; row.word < words; row.word += thread_count) {
    ValuesOf<T> values = Formula::first(row);
    if (Formula::kSums == 2) {
      row.inverse_rms = scale;
      values = SecondSum<Formula>::values(row, values);
    }
    row.inverse_rms = last_scale;
    row.store(Formula::finish(row, values));
  }
}

// ---- kernels ------------------------------------------------------------------------------------

// Only what a call has is bound; nothing else may be touched.
#define NORM_BUFFERS                                                                         \
  device const T *input0 [[buffer(kInput0Buffer)]],                                          \
      device const T *input1 [[buffer(kInput1Buffer), function_constant(has_input1)]],       \
      device const T *input2 [[buffer(kInput2Buffer), function_constant(has_input2)]],       \
      device const void *weight0 [[buffer(kWeight0Buffer), function_constant(has_weight0)]], \
      device const void *weight1 [[buffer(kWeight1Buffer), function_constant(has_weight1)]], \
      device const void *weight2 [[buffer(kWeight2Buffer), function_constant(has_weight2)]], \
      device const void *weight3 [[buffer(kWeight3Buffer), function_constant(has_weight3)]], \
      device const void *scale [[buffer(kScaleBuffer), function_constant(has_scale)]],       \
      device const void *routing_weights                                                     \
      [[buffer(kRoutingWeightsBuffer), function_constant(has_routing_weights)]],             \
      device T *output0 [[buffer(kOutput0Buffer)]],                                          \
      device T *output1 [[buffer(kOutput1Buffer), function_constant(has_output1)]],          \
      device T *output2 [[buffer(kOutput2Buffer), function_constant(has_output2)]],          \
      device T *output3 [[buffer(kOutput3Buffer), function_constant(has_output3)]],          \
      constant NormParams &params [[buffer(kParamsBuffer)]]

#define SET_IF(condition, target, value) \
  if (condition) {                       \
    target = value;                      \
  }

#define NORM_TENSORS(name)                                                     \
  Tensors<T> name;                                                             \
  name.inputs[0] = input0;                                                     \
  SET_IF(has_input1, name.inputs[1], input1)                                   \
  SET_IF(has_input2, name.inputs[2], input2)                                   \
  SET_IF(has_weight0, name.operands[0], weight0)                               \
  SET_IF(has_weight1, name.operands[1], weight1)                               \
  SET_IF(has_weight2, name.operands[2], weight2)                               \
  SET_IF(has_weight3, name.operands[3], weight3)                               \
  SET_IF(has_scale, name.operands[kScale], scale)                              \
  SET_IF(has_routing_weights, name.operands[kRoutingWeights], routing_weights) \
  name.outputs[0] = output0;                                                   \
  SET_IF(has_output1, name.outputs[1], output1)                                \
  SET_IF(has_output2, name.outputs[2], output2)                                \
  SET_IF(has_output3, name.outputs[3], output3)

template <typename Formula, typename T, int kWords, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void norm_simd(
    NORM_BUFFERS, uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]]) {
  // In units of rows before lanes, so that the product with threads cannot overflow.
  const uint row_in_dispatch =
      threadgroup_index * (threads / lanes_per_row) + thread_index / lanes_per_row;
  // Lanes past the last row keep it company: SIMD functions need them all.
  const bool active = row_in_dispatch < params.rows;
  NORM_TENSORS(tensors)
  tensors.template move_to_row<Formula>(
      params.first_row + (active ? row_in_dispatch : params.rows - 1), params);
  norm_in_registers<Formula, T, kWords, kVector>(tensors, params, thread_index % lanes_per_row,
                                                 lanes_per_row, SimdgroupLanes(), active);
}

template <typename Formula, typename T, int kWords, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void norm_row(
    NORM_BUFFERS, uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[Formula::kSums * kMaxSimdgroups];
  NORM_TENSORS(tensors)
  tensors.template move_to_row<Formula>(params.first_row + threadgroup_index, params);
  const Threadgroup group = threadgroup_with(scratch, simdgroup, lane, simdgroups);
  norm_in_registers<Formula, T, kWords, kVector>(tensors, params, thread_index, threads, group,
                                                 true);
}

template <typename Formula, typename T, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void norm_loop(
    NORM_BUFFERS, uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[Formula::kSums * kMaxSimdgroups];
  NORM_TENSORS(tensors)
  tensors.template move_to_row<Formula>(params.first_row + threadgroup_index, params);
  const Threadgroup group = threadgroup_with(scratch, simdgroup, lane, simdgroups);
  norm_in_memory<Formula, T, kVector>(tensors, params, thread_index, threads, group);
}

// ---- names that the host looks up: op, kernel, words, dtype, access -----------------------------

#define INSTANTIATE(name, ...) \
  template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;

#define INSTANTIATE_ACCESS(op, x, T, access, kVector)                             \
  INSTANTIATE(#op "_simd_2_" x "_" access, norm_simd<formula::op, T, 2, kVector>) \
  INSTANTIATE(#op "_row_2_" x "_" access, norm_row<formula::op, T, 2, kVector>)   \
  INSTANTIATE(#op "_row_4_" x "_" access, norm_row<formula::op, T, 4, kVector>)   \
  INSTANTIATE(#op "_loop_" x "_" access, norm_loop<formula::op, T, kVector>)

#define INSTANTIATE_TYPE(op, x, T)              \
  INSTANTIATE_ACCESS(op, x, T, "scalar", false) \
  INSTANTIATE_ACCESS(op, x, T, "vector", true)

// A metallib has all of them. To source that is compiled at run time the host adds the one line
// that instantiates the kernel it asks for (csrc/mps/plan.cpp).
#ifdef INSTANTIATE_AT_RUN_TIME
#define INSTANTIATE_KERNELS(op)
#else
#define INSTANTIATE_KERNELS(op)          \
  INSTANTIATE_TYPE(op, "float32", float) \
  INSTANTIATE_TYPE(op, "float16", half)  \
  INSTANTIATE_TYPE(op, "bfloat16", bfloat)
#endif
