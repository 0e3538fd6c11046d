#include "pipeline_key.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <stdexcept>

namespace mlxnorm::mps {
namespace {

// Those of an op are packed without the others.
consteval int most_choices() {
  size_t most = 0;
  for (const OpTable& op : kOps) {
    size_t count = 0;
    for (const Option option : op.options) {
      count += option.kind == Option::choice;
    }
    most = std::max(most, count);
  }
  return int(most);
}
constexpr int kMostChoicesOfAnOp = most_choices();

uint64_t choices_of(const PipelineKey& key) {
  uint64_t result = 0;
  if (size_t(key.op) >= std::size(kOps)) {
    return result;
  }
  for (const Option option : table_of(key.op).options) {
    if (option.kind == Option::choice) {
      result = result << kChoiceBits | choice_in(key.choices, Choice(option.which));
    }
  }
  return result;
}

// Each field has so many values. A table, an enum or a limit that grows makes room for itself.
constexpr uint64_t kValues[] = {
    std::size(kOps),
    kKernelKinds,
    kMaxWordsPerThread + 1,
    6,  // lanes per row, powers of two
    2,  // vector
    kPrefetches,
    kDTypes,
    uint64_t(1) << (int(kTensorTypeBits) * int(kMaxTensors)),
    uint64_t(1) << kMaxTensors,  // scalars
    uint64_t(1) << (int(kChoiceBits) * kMostChoicesOfAnOp),
    3,  // spacing
    2,  // holds pairs
    6,  // threads per column, powers of two
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

// Where all of a head is rotated: pairs of neighbours lie in one word, those of halves in two words
// of a thread if it has as many of each half.
bool pairs_are_held(const PipelineKey& key, const NormLayout& layout) {
  const int64_t per_word = kWordBytes / size_of(key.dtype);
  const int64_t head = layout.dim / layout.heads;
  if (key.plan.kernel == KernelKind::loop || layout.rotated != head) {
    return false;
  }
  if (choice_in(key.choices, kInterleaved) != 0) {
    return layout.heads == 1 || head % per_word == 0;
  }
  const int64_t threads =
      key.plan.kernel == KernelKind::simd ? key.plan.lanes_per_row : key.plan.threads;
  return layout.heads == 1 && key.plan.words_per_thread % 2 == 0 &&
         threads * key.plan.words_per_thread * per_word == head;
}

}  // namespace

PipelineKey key_of(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
                   bool aligned, Access access) {
  const NormLayout& first = *layouts[0];
  PipelineKey key{op.op, {}, first.dtype, 0, 0, options.choices, kEven, false};
  int64_t most_rows = 0;
  for (size_t s = 0; s < layouts.size(); ++s) {
    const NormLayout& layout = *layouts[s];
    const Segment& segment = op.segments[s];
    most_rows = std::max(most_rows, layout.rows);
    for (size_t i = 0; i < segment.count; ++i) {
      const int t = segment.tensors[i];
      key.tensor_types |= pack_tensor_type(t, tensor_type(layout.tensor_types, int(i)));
      key.scalars |= uint32_t(has_bit(layout.scalars, int(i))) << t;
    }
    key.spacing = std::max(key.spacing, spacing_of(layout));
  }
  if (first.line != 0) {
    key.plan = plan_columns(first, aligned, access);
    return key;
  }
  key.plan = plan_rows({op, first.dtype, most_rows, first.dim,
                        tensors_of_words(op, key.tensor_types, key.scalars, /*with_experts=*/false),
                        key.choices, aligned},
                       access);
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
    key.holds_pairs = pairs_are_held(key, *layouts[0]);
    if (!key.holds_pairs) {
      key.plan.prefetch = Prefetch::nothing;  // words of a whole row
    }
  }
  return key;
}

uint64_t packed(const PipelineKey& key) {
  const uint64_t fields[] = {uint64_t(key.op),
                             uint64_t(key.plan.kernel),
                             key.plan.words_per_thread,
                             uint64_t(std::countr_zero(key.plan.lanes_per_row)),
                             key.plan.vector,
                             uint64_t(key.plan.prefetch),
                             uint64_t(key.dtype),
                             key.tensor_types,
                             key.scalars,
                             choices_of(key),
                             uint64_t(key.spacing),
                             key.holds_pairs,
                             uint64_t(std::countr_zero(key.plan.threads_per_column))};
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
  if (key.plan.prefetch == Prefetch::nothing) {
    return 0;
  }
  const OpTable& op = table_of(key.op);
  uint32_t tensors = tensors_of_words(op, key.tensor_types, key.scalars, /*with_experts=*/false);
  for (size_t t = 0; t < op.tensors.size(); ++t) {
    const Role role = op.tensors[t].role;
    if (role == Role::angles ||  // which are read by the words of a head
        (key.plan.prefetch == Prefetch::activations && !is_activation(role))) {
      tensors &= ~(1u << t);
    }
  }
  return tensors;
}

std::vector<Constant> constants_of(const PipelineKey& key) {
  std::vector<Constant> constants = {
      {kTensorTypesConstant, key.tensor_types, false},
      {kScalarsConstant, key.scalars, false},
      {kChoicesConstant, key.choices, false},
      {kPrefetchConstant, prefetched_tensors(key), false},
      {kLanesPerRowConstant, key.plan.lanes_per_row, false},
      {kResultTypesConstant, result_types(table_of(key.op), key.tensor_types), false},
      {kSpacingConstant, key.spacing, false},
      {kHoldsPairsConstant, key.holds_pairs, true},
      {kThreadsPerColumnConstant, key.plan.threads_per_column, false},
  };
  const uint32_t buffers = bound_buffers(table_of(key.op), key.tensor_types);
  for (int i = 0; i < kParamsBuffer; ++i) {
    constants.push_back({kHasBufferConstant + i, has_bit(buffers, i), true});
  }
  return constants;
}

}  // namespace mlxnorm::mps
