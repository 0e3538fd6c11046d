// What host and shader must agree on: tensors, argument struct, buffer indices, function constants.
// Included by the Metal shaders, by the Objective-C++ that binds their arguments, and by the CPU
// kernels, which find a row the same way.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace mlxnorm {

// ---- tensors of an op ------------------------------------------------------------------------
// All are alike: a type, a row layout and, where it may, one element for all. Their numbers are
// those of the op's formula (formulas/) and of its table (csrc/ops/).

enum Limits {
  kMaxTensors = 8,
  kMaxResults = 4,
  kMaxSegments = 3,  // norms side by side
};

// Where the rows of a tensor lie, by the leading dimensions of the results, which fold into at most
// three: row (i0, i1, i2), counted with i2 fastest, starts at element
// i0 * stride0 + i1 * stride1 + i2 * stride2. Strides are 0 where it is broadcast, for a weight
// all of them. The elements of a row are neighbours.
struct RowLayout {
  int64_t stride0, stride1, stride2;
  uint32_t size1, size2;
};

inline bool is_evenly_spaced(RowLayout layout) {
  return layout.size1 == 1 && layout.size2 == 1;
}

// Of the rows of all tensors and results of a call.
enum Spacing : uint32_t {
  kEven,   // each has one stride
  kAlike,  // all layouts have the same sizes; there are less than 2^32 rows
  kMixed,
};

// A row by the sizes of a layout.
struct RowIndex {
  uint64_t i0;
  uint32_t i1, i2;
};

template <typename Index>
inline RowIndex folded(Index row, uint32_t size1, uint32_t size2) {
  const Index outer = row / size2;
  const uint32_t i2 = uint32_t(row - outer * size2);
  if (size1 == 1) {
    return {outer, 0, i2};
  }
  return {outer / size1, uint32_t(outer % size1), i2};
}

inline RowIndex row_index(RowLayout layout, uint64_t row) {
  if (row >> 32 == 0) {  // a GPU has no 64-bit division
    return folded(uint32_t(row), layout.size1, layout.size2);
  }
  return folded(row, layout.size1, layout.size2);
}

inline int64_t offset_of(RowLayout layout, RowIndex i) {
  return int64_t(i.i0) * layout.stride0 + int64_t(i.i1) * layout.stride1 +
         int64_t(i.i2) * layout.stride2;
}

inline int64_t row_offset(RowLayout layout, uint64_t row) {
  if (is_evenly_spaced(layout)) {
    return int64_t(row) * layout.stride0;  // the usual case needs no 64-bit division
  }
  return offset_of(layout, row_index(layout, row));
}

enum TensorType : uint32_t {
  kAbsent = 0,
  kFloat32 = 1,
  kFloat16 = 2,
  kBFloat16 = 3,
  kTensorTypeBits = 2,
};

// In bytes.
inline uint32_t element_size(TensorType type) {
  return type == kFloat32 ? 4 : 2;
}

// The types of all tensors, or of all results, in one word.
inline uint32_t pack_tensor_type(int tensor, TensorType type) {
  return uint32_t(type) << (kTensorTypeBits * tensor);
}
inline TensorType tensor_type(uint32_t types, int tensor) {
  return TensorType(types >> (kTensorTypeBits * tensor) & ((1u << kTensorTypeBits) - 1));
}

// A bit for each tensor.
inline bool has_bit(uint32_t bits, int tensor) {
  return (bits >> tensor & 1) != 0;
}

// ---- options of an op ------------------------------------------------------------------------
// csrc/ops/options.h has their names, defaults and values.

// Those that are numbers are arguments of the kernels.
enum Number {
  kWeightOffset,
  kScaleOffset,
  kNextScaleOffset,
  kAlpha,  // a factor of the branch
  kBeta,   // a factor of the residual
  kNumbers,
};

// Those that choose among a few are constants of a pipeline.
enum Choice {
  kActivation,
  kCastingMode,
  kRoundIntermediates,
  kModulation,
  kNormBeforeGate,
  kInterleaved,
  kFullTables,
  kAcrossHeads,
  kRopeRounding,
  kGateActivation,
  kForm,
  kThenSilu,
  kChoices,

  kChoiceBits = 2,
};
enum Activation : uint32_t { kNoActivation, kSilu, kGeluTanh, kSigmoid };
enum GateActivation : uint32_t { kNoGateActivation, kGateTanh, kGateSigmoid };
enum CastingMode : uint32_t {
  kGemma,  // multiply by the weight in float32, round once
  kLlama,  // round the normalized value, multiply by the weight, round again
};

// Of x, by scale and shift: where it is rounded, if round_intermediates asks for it.
enum Modulation : uint32_t {
  kSteps,    // 1 + scale, the product, the sum
  kAddcmul,  // x + x * scale, the sum
  kOnce,     // the result
};

// Of y0 * cos - y1 * sin: where it is rounded, if round_intermediates asks for it.
enum RopeRounding : uint32_t {
  kRoundOnce,      // the result
  kRoundProducts,  // both products, the result
  kRoundAddcmul,   // the first product, the result
};

// What channels are divided by and how often that is rounded; formulas/channel_rms_norm.h.
enum Form : uint32_t {
  kRms,               // as an rms norm
  kRmsSteps,          // the rms, every step of it rounded
  kNormalize,         // the norm, rounded
  kNormalizeFloat32,  // the norm in float32
};

// All choices in one word.
inline uint32_t pack_choice(Choice which, uint32_t value) {
  return value << (kChoiceBits * which);
}
inline uint32_t choice_in(uint32_t choices, Choice which) {
  return choices >> (kChoiceBits * which) & ((1u << kChoiceBits) - 1);
}

// ---- arguments of the kernels ----------------------------------------------------------------

// Every slot by name: an attribute's argument should be one.
enum BufferIndex {
  kTensor0Buffer,
  kTensor1Buffer,
  kTensor2Buffer,
  kTensor3Buffer,
  kTensor4Buffer,
  kTensor5Buffer,
  kTensor6Buffer,
  kTensor7Buffer,
  kResult0Buffer,
  kResult1Buffer,
  kResult2Buffer,
  kResult3Buffer,
  kParamsBuffer,

  kTensorBuffer = kTensor0Buffer,  // and those of further tensors and results follow
  kResultBuffer = kResult0Buffer,
};

// Of one segment of an op: first what most kernels read.
struct NormParams {
  uint64_t first_row;     // of this dispatch; a huge tensor takes several
  uint32_t rows;          // in this dispatch
  uint32_t threadgroups;  // that it has for these rows
  uint32_t dim;
  uint32_t heads;    // that a row consists of
  uint32_t rotated;  // elements, the first ones of a head
  uint32_t top_k;
  float inverse_dim;
  float eps;
  float numbers[kNumbers];
  float root_dim;  // its square root
  RowLayout results[kMaxResults];
  RowLayout tensors[kMaxTensors];
  int64_t steps[kMaxTensors];  // elements from one expert, head or channel of a row to the next
  int64_t result_step;         // of channels
  uint64_t line;               // rows that are neighbours in memory, where channels are not
};

// Choices that the Metal compiler should see as constants, fixed when a pipeline is made.
enum FunctionConstant {
  kTensorTypesConstant = 0,  // uint, see tensor_type
  kScalarsConstant = 1,      // uint, a bit for each tensor that has one element for all
  kChoicesConstant = 2,      // uint, see choice_in
  kPrefetchConstant = 3,     // uint, a bit for each tensor that is loaded before the first sum
  kLanesPerRowConstant = 4,  // uint, threads of a SIMD group that share a short row, or lie along
                             // a line
  kResultTypesConstant = 5,  // uint, see tensor_type
  kSpacingConstant = 6,      // uint, see Spacing

  kHoldsPairsConstant = 7,        // bool: has a thread both elements of every pair that is rotated?
  kThreadsPerColumnConstant = 8,  // uint, threads that share a column, a power of two up to 32

  // bool, for each buffer that not all calls bind: is it bound?
  kHasBufferConstant = 9,
  kHasTensor1Constant = kHasBufferConstant + kTensor1Buffer,
  kHasTensor2Constant = kHasBufferConstant + kTensor2Buffer,
  kHasTensor3Constant = kHasBufferConstant + kTensor3Buffer,
  kHasTensor4Constant = kHasBufferConstant + kTensor4Buffer,
  kHasTensor5Constant = kHasBufferConstant + kTensor5Buffer,
  kHasTensor6Constant = kHasBufferConstant + kTensor6Buffer,
  kHasTensor7Constant = kHasBufferConstant + kTensor7Buffer,
  kHasResult1Constant = kHasBufferConstant + kResult1Buffer,
  kHasResult2Constant = kHasBufferConstant + kResult2Buffer,
  kHasResult3Constant = kHasBufferConstant + kResult3Buffer,
};

// Geometry limits that kernels are compiled for and that the host plans with.
enum Geometry {
  kSimdWidth = 32,
  kMaxThreads = 1024,
  kMaxSimdgroups = kMaxThreads / kSimdWidth,
  kMaxColumnThreads = 256,
  kWordBytes = 16,
  kKeptRegisters = 32,  // of a row that is longer than the registers hold
};

}  // namespace mlxnorm
