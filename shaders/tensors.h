// The tensors of a call as a kernel gets them: what is there is known when a pipeline is made.
#pragma once

#include "words.h"

constant uint tensor_types [[function_constant(kTensorTypesConstant)]];
constant uint result_types [[function_constant(kResultTypesConstant)]];
constant uint scalars [[function_constant(kScalarsConstant)]];
constant uint prefetched_tensors [[function_constant(kPrefetchConstant)]];
constant uint spacing [[function_constant(kSpacingConstant)]];
constant bool has_tensor1 [[function_constant(kHasTensor1Constant)]];
constant bool has_tensor2 [[function_constant(kHasTensor2Constant)]];
constant bool has_tensor3 [[function_constant(kHasTensor3Constant)]];
constant bool has_tensor4 [[function_constant(kHasTensor4Constant)]];
constant bool has_tensor5 [[function_constant(kHasTensor5Constant)]];
constant bool has_tensor6 [[function_constant(kHasTensor6Constant)]];
constant bool has_tensor7 [[function_constant(kHasTensor7Constant)]];
constant bool has_result1 [[function_constant(kHasResult1Constant)]];
constant bool has_result2 [[function_constant(kHasResult2Constant)]];
constant bool has_result3 [[function_constant(kHasResult3Constant)]];

// Only what a call has is bound; nothing else may be touched.
#define NORM_BUFFERS                                                                         \
  device const void *tensor0 [[buffer(kTensor0Buffer)]],                                     \
      device const void *tensor1 [[buffer(kTensor1Buffer), function_constant(has_tensor1)]], \
      device const void *tensor2 [[buffer(kTensor2Buffer), function_constant(has_tensor2)]], \
      device const void *tensor3 [[buffer(kTensor3Buffer), function_constant(has_tensor3)]], \
      device const void *tensor4 [[buffer(kTensor4Buffer), function_constant(has_tensor4)]], \
      device const void *tensor5 [[buffer(kTensor5Buffer), function_constant(has_tensor5)]], \
      device const void *tensor6 [[buffer(kTensor6Buffer), function_constant(has_tensor6)]], \
      device const void *tensor7 [[buffer(kTensor7Buffer), function_constant(has_tensor7)]], \
      device T *result0 [[buffer(kResult0Buffer)]],                                          \
      device T *result1 [[buffer(kResult1Buffer), function_constant(has_result1)]],          \
      device T *result2 [[buffer(kResult2Buffer), function_constant(has_result2)]],          \
      device T *result3 [[buffer(kResult3Buffer), function_constant(has_result3)]],          \
      constant NormParams *segments [[buffer(kParamsBuffer)]]

#define SET_IF(condition, target, value) \
  if (condition) {                       \
    target = value;                      \
  }

#define NORM_TENSORS(name)                      \
  Tensors<T> name;                              \
  name.tensors[0] = tensor0;                    \
  SET_IF(has_tensor1, name.tensors[1], tensor1) \
  SET_IF(has_tensor2, name.tensors[2], tensor2) \
  SET_IF(has_tensor3, name.tensors[3], tensor3) \
  SET_IF(has_tensor4, name.tensors[4], tensor4) \
  SET_IF(has_tensor5, name.tensors[5], tensor5) \
  SET_IF(has_tensor6, name.tensors[6], tensor6) \
  SET_IF(has_tensor7, name.tensors[7], tensor7) \
  name.results[0] = result0;                    \
  SET_IF(has_result1, name.results[1], result1) \
  SET_IF(has_result2, name.results[2], result2) \
  SET_IF(has_result3, name.results[3], result3)

// One row, in the layouts of all tensors and results.
struct RowOfAll {
  ulong row;
  RowIndex index;  // if their sizes are alike

  METAL_FUNC long offset(RowLayout layout) const {
    switch (spacing) {
      case kEven:
        return long(row) * layout.stride0;
      case kAlike:
        return offset_of(layout, index);
      default:  // kMixed
        return row_offset(layout, row);
    }
  }
};

METAL_FUNC RowOfAll row_of_all(ulong row, RowLayout any) {
  RowOfAll result;
  result.row = row;
  if (spacing == kAlike) {
    result.index = folded(uint(row), any.size1, any.size2);
  }
  return result;
}

// From their first row, or from a later one.
template <typename T>
struct Tensors {
  device const void* tensors[kMaxTensors];
  device void* results[kMaxResults];

  template <typename Formula>
  METAL_FUNC void move_to_row(ulong row, constant NormParams& params) {
    const RowOfAll at = row_of_all(row, params.results[FirstResult<Formula>::value]);
#pragma unroll
    for (int t = 0; t < Formula::kTensors; ++t) {
      if (tensor_type(tensor_types, t) != kAbsent) {
        tensors[t] = from(t, at.offset(params.tensors[t]));
      }
    }
#pragma unroll
    for (int i = 0; i < Formula::kResults; ++i) {
      const int r = FirstResult<Formula>::value + i;
      move_result(r, at.offset(params.results[r]));
    }
  }

  // Within that row.
  template <typename Formula>
  METAL_FUNC void move_to_head(uint head, constant NormParams& params) {
#pragma unroll
    for (int t = 0; t < Formula::kTensors; ++t) {
      tensors[t] = from(t, head * params.steps[t]);
    }
    move_result(FirstResult<Formula>::value, head * long(params.dim / params.heads));
  }

  METAL_FUNC void move_result(int r, long elements) {
    const long bytes = elements * element_size(tensor_type(result_types, r));
    results[r] = static_cast<device uchar*>(results[r]) + bytes;
  }

  // From an element of the row on.
  METAL_FUNC device const void* from(int t, long first) const {
    const long bytes = first * element_size(tensor_type(tensor_types, t));
    return static_cast<device const uchar*>(tensors[t]) + bytes;
  }

  // Inputs have the type of the results.
  METAL_FUNC device const T* input(int t) const { return static_cast<device const T*>(tensors[t]); }

  // An element of a tensor of any type.
  METAL_FUNC float element(int t, long i) const {
    switch (tensor_type(tensor_types, t)) {
      case kFloat16:
        return float(static_cast<device const half*>(tensors[t])[i]);
      case kBFloat16:
        return float(static_cast<device const bfloat*>(tensors[t])[i]);
      default:
        return static_cast<device const float*>(tensors[t])[i];
    }
  }
};

// What of a tensor of any type belongs to one word of T: a word; two if it is float32 and T has 16
// bits; half a word if it has 16 bits and T is float32.
template <typename T, bool kVector>
struct TensorWord {
  enum { kValues = Element<T>::kPerWord };
  uint4 words[kValues / Element<float>::kPerWord];

  METAL_FUNC void load(device const void* p, int t, uint word, uint dim) {
    switch (tensor_type(tensor_types, t)) {
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

  METAL_FUNC ValuesOf<T> values(int t) const {
    switch (tensor_type(tensor_types, t)) {
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
      words[0] = Access<U, kVector>::template load_part<kValues>(row, word, dim);
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
  TensorWord<T, kVector> words[Formula::kTensors];

  METAL_FUNC void load(thread const Tensors<T>& tensors, uint word, uint dim) {
#pragma unroll
    for (int t = 0; t < Formula::kTensors; ++t) {
      if (has_bit(prefetched_tensors, t)) {
        words[t].load(tensors.tensors[t], t, word, dim);
      }
    }
  }
};
