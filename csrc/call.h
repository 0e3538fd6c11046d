// One call of an op: its tensors by number and its options, checked as they are read.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <optional>
#include <string_view>

#include "checks.h"
#include "ops/ops.h"

namespace mlxnorm {

using OptionalTensor = std::optional<at::Tensor>;

// By its name, with or without the namespace.
const OpTable& table_of(std::string_view name);

// Position of tensor t among the arguments of the schema: positional tensors, eps, `*`, tensors by
// keyword, options, results.
constexpr size_t argument_of_tensor(const OpTable& op, size_t t) {
  return t < op.positional ? t : t + 1;
}
constexpr size_t argument_of_eps(const OpTable& op) {
  return op.positional;
}
constexpr size_t argument_of_option(const OpTable& op, size_t i) {
  return op.tensors.size() + 1 + i;
}
constexpr size_t argument_of_out(const OpTable& op, size_t r) {
  return argument_of_option(op, op.options.size() + r);
}

// May result r lie where tensor t does? Experts are read in passes of their own; an input or a
// residual of a segment is read where it is overwritten.
constexpr bool may_be_same(const OpTable& op, size_t r, size_t t) {
  return (op.segment_count == 1 || t == op.likes[r]) && has_shape_of_results(op.tensors[t].role);
}

// Choices by name, "True" or "False" where they have no names for their values. Those that are left
// out have the op's default.
uint32_t parse_choices(const OpTable& op, const c10::Dict<std::string, std::string>& choices);

// Borrows the tensors.
class NormCall {
 public:
  // Of the arguments of the op's schema, but for outs.
  NormCall(const OpTable& op, const c10::IValue* arguments);

  // Outs among the arguments that the call was read from, checked.
  void read_outs(const c10::IValue* arguments, const at::Tensor** outs) const;

  const OpTable& op() const { return op_; }
  const NormOptions& options() const { return options_; }
  int64_t group_size() const { return integers_[kGroupSize]; }
  // Absent where it is None.
  const Argument& tensor(size_t t) const { return tensors_[t]; }
  const Argument& first() const { return tensors_[0]; }

  // Tensor i of a segment; absent where it has none.
  const Argument& tensor(const Segment& segment, size_t i) const;
  // Its inputs are like the first one, which has the shape of its results.
  const Argument& first(const Segment& segment) const { return tensors_[segment.tensors[0]]; }

  bool has_full_tables() const { return choice_in(options_.choices, kFullTables) != 0; }
  // A row is all heads of a token, dimensions -2 and -1, or only the last dimension.
  bool across_heads() const { return choice_in(options_.choices, kAcrossHeads) != 0; }

  // An input or a residual that has shape and dtype of result r.
  const at::Tensor& like(size_t r) const;

 private:
  void check_out(size_t r, const Argument& out) const;
  void check_segment(const Segment& segment);
  void read_option(Option option, const c10::IValue& value);
  void read_angles(const Segment& segment);

  const OpTable& op_;
  Argument tensors_[kMaxTensors];
  NormOptions options_{};
  int64_t integers_[kIntegers] = {};
};

}  // namespace mlxnorm
