// One call of an op: its tensors by role and its options, checked as they are added.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "checks.h"
#include "types.h"

namespace mlxnorm {

using OptionalTensor = std::optional<at::Tensor>;

// By its name without the namespace.
Op op_of(std::string_view name);

NormOptions make_options(Op op, std::optional<double> eps, double weight_offset,
                         std::string_view casting_mode, bool round_intermediates = false);

// Borrows the tensors. Inputs and weights are added in the order in which the op's formula
// (shaders/formulas/) numbers them; everything is compared with the first input.
class NormCall {
 public:
  NormCall(Op op, const char* name, const at::Tensor& x);

  NormCall& input(const char* name, const at::Tensor& tensor);
  NormCall& weight(const char* name, const at::Tensor& tensor);
  NormCall& weight(const char* name, const OptionalTensor& tensor);
  NormCall& scale(const char* name, const at::Tensor& tensor);
  NormCall& scale(const char* name, const OptionalTensor& tensor);
  NormCall& elementwise_scale(const char* name, const at::Tensor& tensor);
  // Says that the first input is [..., top_k, dim].
  NormCall& routing_weights(const char* name, const at::Tensor& tensor);
  NormCall& options(std::optional<double> eps, double weight_offset, std::string_view casting_mode,
                    bool round_intermediates = false);
  NormCall& activation(std::string_view activation);

  void check_out(const Argument& out) const;

  Op op() const { return op_; }
  const NormOptions& options() const { return options_; }
  Activation activation() const { return activation_; }
  const Argument& first_input() const { return inputs_[0]; }
  // Absent when there are fewer.
  const Argument& input(int i) const { return inputs_[i]; }
  const Argument& operand(int i) const { return operands_[i]; }
  bool sums_experts() const { return bool(operands_[kRoutingWeights]); }

  // An input that has the shape of the results.
  const at::Tensor& like() const { return *inputs_[input_count_ - 1].tensor; }

 private:
  Op op_;
  int input_count_ = 1;
  int weight_count_ = 0;
  Argument inputs_[kMaxInputs];
  Argument operands_[kOperands];
  NormOptions options_{};
  Activation activation_ = kNoActivation;
};

}  // namespace mlxnorm
