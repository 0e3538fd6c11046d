#include "pipeline_key.h"

#include <iterator>
#include <stdexcept>

namespace mlxnorm::mps {
namespace {

// Each field has so many values. A table, an enum or a limit that grows makes room for itself.
constexpr uint64_t kValues[] = {
    std::size(kOps),
    kKernelKinds,
    kMaxWordsPerThread + 1,
    kSimdWidth + 1,  // lanes per row
    2,               // vector
    2,               // prefetch
    kDTypes,
    uint64_t(1) << (int(kTensorTypeBits) * int(kMaxTensors)),
    uint64_t(1) << kMaxTensors,  // scalars
    uint64_t(1) << (int(kChoiceBits) * int(kChoices)),
};

consteval bool fit_into_a_word() {
  uint64_t room = ~uint64_t(0);
  for (const uint64_t values : kValues) {
    room /= values;
  }
  return room > 0;
}
static_assert(fit_into_a_word());

bool has_16_bits(uint32_t tensor_types) {
  for (int t = 0; t < kMaxTensors; ++t) {
    const TensorType type = tensor_type(tensor_types, t);
    if (type == kFloat16 || type == kBFloat16) {
      return true;
    }
  }
  return false;
}

}  // namespace

PipelineKey key_of(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
                   const Plan& plan) {
  PipelineKey key{op.op, plan, layouts[0]->dtype, 0, 0, options.choices};
  for (size_t s = 0; s < layouts.size(); ++s) {
    const Segment& segment = op.segments[s];
    for (size_t i = 0; i < segment.count; ++i) {
      const int t = segment.tensors[i];
      key.tensor_types |= pack_tensor_type(t, tensor_type(layouts[s]->tensor_types, int(i)));
      key.scalars |= uint32_t(has_bit(layouts[s]->scalars, int(i))) << t;
    }
  }
  const auto leave_out = [&](Choice which) {
    key.choices &= ~pack_choice(which, ~0u >> (32 - kChoiceBits));
  };
  if (choice_in(key.choices, kRoundIntermediates) == 0) {
    leave_out(kRopeRounding);
  }
  // In float32 nothing is rounded but what is made of a 16-bit operand, to that one's type.
  if (key.dtype == DType::float32) {
    leave_out(kCastingMode);
    if (!has_16_bits(key.tensor_types)) {
      leave_out(kRoundIntermediates);
    }
  }
  if (has_option(op.options, kInterleaved)) {
    key.plan.prefetch = false;  // words of a whole row
  }
  return key;
}

uint64_t packed(const PipelineKey& key) {
  const uint64_t fields[] = {uint64_t(key.op),
                             uint64_t(key.plan.kernel),
                             key.plan.words_per_thread,
                             key.plan.lanes_per_row,
                             key.plan.vector,
                             key.plan.prefetch,
                             uint64_t(key.dtype),
                             key.tensor_types,
                             key.scalars,
                             key.choices};
  static_assert(std::size(fields) == std::size(kValues));
  uint64_t word = 0;
  for (size_t i = 0; i < std::size(fields); ++i) {
    if (fields[i] >= kValues[i]) {
      throw std::logic_error("mlxnorm: a pipeline key has no room for one of its fields");
    }
    word = word * kValues[i] + fields[i];
  }
  return word;
}

uint32_t prefetched_tensors(const PipelineKey& key) {
  return key.plan.prefetch ? tensors_of_words(table_of(key.op), key.tensor_types, key.scalars,
                                              /*with_experts=*/false)
                           : 0;
}

std::vector<Constant> constants_of(const PipelineKey& key) {
  std::vector<Constant> constants = {
      {kTensorTypesConstant, key.tensor_types, false},
      {kScalarsConstant, key.scalars, false},
      {kChoicesConstant, key.choices, false},
      {kPrefetchConstant, prefetched_tensors(key), false},
      {kLanesPerRowConstant, key.plan.lanes_per_row, false},
      {kResultTypesConstant, result_types(table_of(key.op), key.tensor_types), false},
  };
  const uint32_t buffers = bound_buffers(table_of(key.op), key.tensor_types);
  for (int i = 0; i < kParamsBuffer; ++i) {
    constants.push_back({kHasBufferConstant + i, has_bit(buffers, i), true});
  }
  return constants;
}

}  // namespace mlxnorm::mps
