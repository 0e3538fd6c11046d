// What host and shader must agree on: operands, argument struct, buffer indices, function
// constants. Included by the Metal shaders, by the Objective-C++ that binds their arguments, and by
// the CPU kernels, which find a row the same way.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace mlxnorm {

// Where the rows of an activation lie: row (i0, i1, i2), counted with i2 fastest, starts at element
// i0 * stride0 + i1 * stride1 + i2 * stride2. Its last dimension always has stride 1.
struct RowLayout {
  int64_t stride0, stride1, stride2;
  uint32_t size1, size2;
};

inline int64_t row_offset(RowLayout rows, uint64_t row) {
  if (rows.size1 == 1 && rows.size2 == 1) {
    return int64_t(row) * rows.stride0;  // the usual case needs no 64-bit division
  }
  const uint64_t i2 = row % rows.size2;
  const uint64_t outer = row / rows.size2;
  const uint64_t i1 = outer % rows.size1;
  const uint64_t i0 = outer / rows.size1;
  return int64_t(i0) * rows.stride0 + int64_t(i1) * rows.stride1 + int64_t(i2) * rows.stride2;
}

// ---- tensors of an op ------------------------------------------------------------------------
// Every op has inputs (activations), operands (what they are multiplied by) and outputs.

enum Limits {
  kMaxInputs = 3,
  kMaxWeights = 4,
  kMaxOutputs = 4,
};

// Weights are the operands 0 to 3.
enum Operand {
  kScale = kMaxWeights,  // `scale` and `layer_scalar`
  kRoutingWeights,
  kOperands,
};

// Each operand has a dtype of its own, whatever the activations have.
enum OperandType : uint32_t {
  kAbsent = 0,
  kFloat32 = 1,
  kFloat16 = 2,
  kBFloat16 = 3,
};

// In bytes.
inline uint32_t element_size(OperandType type) {
  return type == kFloat32 ? 4 : 2;
}

// The types of all operands in one word.
inline uint32_t pack_operand_type(int operand, OperandType type) {
  return uint32_t(type) << (2 * operand);
}
inline OperandType operand_type(uint32_t types, int operand) {
  return OperandType(types >> (2 * operand) & 3);
}

enum Activation : uint32_t {
  kNoActivation = 0,
  kSilu = 1,
  kGeluTanh = 2,
  kSigmoid = 3,
};

// ---- arguments of the kernels ----------------------------------------------------------------

// Every slot by name: an attribute's argument should be one.
enum BufferIndex {
  kInput0Buffer,
  kInput1Buffer,
  kInput2Buffer,
  kWeight0Buffer,
  kWeight1Buffer,
  kWeight2Buffer,
  kWeight3Buffer,
  kScaleBuffer,
  kRoutingWeightsBuffer,
  kOutput0Buffer,
  kOutput1Buffer,
  kOutput2Buffer,
  kOutput3Buffer,
  kParamsBuffer,

  kInputBuffer = kInput0Buffer,  // and those of further inputs, operands and outputs follow
  kOperandBuffer = kWeight0Buffer,
  kOutputBuffer = kOutput0Buffer,
};

struct NormParams {
  RowLayout inputs[kMaxInputs];
  RowLayout scale;            // strides of 0 when all rows share it
  RowLayout routing_weights;  // a row has top_k elements
  int64_t expert_stride;      // elements from one expert's output to the next
  uint64_t first_row;         // of this dispatch; a huge tensor takes several
  uint32_t rows;              // in this dispatch
  uint32_t dim;
  uint32_t top_k;
  float inverse_dim;
  float eps;
  float weight_offset;
};

// Choices that the Metal compiler should see as constants, fixed when a pipeline is made.
enum FunctionConstant {
  kOperandTypesConstant = 0,        // uint, see operand_type
  kScaleIsScalarConstant = 1,       // bool, one element for all of dim
  kActivationConstant = 2,          // uint, an Activation
  kRoundBeforeWeightConstant = 3,   // bool, casting_mode "llama"
  kRoundIntermediatesConstant = 4,  // bool
  kPrefetchConstant = 5,            // bool, load all tensors before the first reduction's barrier
  kLanesPerRowConstant = 6,         // uint, threads of a SIMD group that share a short row

  // bool, for each buffer that not all calls bind: is it bound?
  kHasBufferConstant = 7,
  kHasInput1Constant = kHasBufferConstant + kInput1Buffer,
  kHasInput2Constant = kHasBufferConstant + kInput2Buffer,
  kHasWeight0Constant = kHasBufferConstant + kWeight0Buffer,
  kHasWeight1Constant = kHasBufferConstant + kWeight1Buffer,
  kHasWeight2Constant = kHasBufferConstant + kWeight2Buffer,
  kHasWeight3Constant = kHasBufferConstant + kWeight3Buffer,
  kHasScaleConstant = kHasBufferConstant + kScaleBuffer,
  kHasRoutingWeightsConstant = kHasBufferConstant + kRoutingWeightsBuffer,
  kHasOutput1Constant = kHasBufferConstant + kOutput1Buffer,
  kHasOutput2Constant = kHasBufferConstant + kOutput2Buffer,
  kHasOutput3Constant = kHasBufferConstant + kOutput3Buffer,
};

// Geometry limits that kernels are compiled for and that the host plans with.
enum Geometry {
  kSimdWidth = 32,
  kMaxThreads = 1024,
  kMaxSimdgroups = kMaxThreads / kSimdWidth,
  kWordBytes = 16,
};

}  // namespace mlxnorm
