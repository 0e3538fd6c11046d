#include "call.h"

#include <limits>

#include <c10/util/Exception.h>

namespace mlxnorm {

Op op_of(std::string_view name) {
#define MLXNORM_OP_OF(op) \
  if (name == #op) {      \
    return Op::op;        \
  }
  MLXNORM_FOR_EACH_OP(MLXNORM_OP_OF)
#undef MLXNORM_OP_OF
  TORCH_CHECK_VALUE(false, "mlxnorm has no operator ", name);
}

NormOptions make_options(Op op, std::optional<double> eps, double weight_offset,
                         std::string_view casting_mode, bool round_intermediates) {
  // Adding -0.0 changes no weight; adding 0.0 would turn a weight of -0.0 into 0.0.
  const float offset = weight_offset == 0.0 ? -0.0f : float(weight_offset);
  // As torch.nn.functional.rms_norm takes None: in the dtype that it computes in.
  const double default_eps = std::numeric_limits<float>::epsilon();
  return {float(eps.value_or(default_eps)), offset, parse_casting_mode(op, casting_mode),
          round_intermediates};
}

NormCall::NormCall(Op op, const char* name, const at::Tensor& x) : op_(op) {
  inputs_[0] = {name, x};
  check_activation(op_, inputs_[0]);
}

NormCall& NormCall::input(const char* name, const at::Tensor& tensor) {
  const Argument argument(name, tensor);
  if (sums_experts()) {
    check_like_experts(op_, argument, inputs_[0]);
  } else {
    check_like(op_, argument, inputs_[0]);
  }
  inputs_[input_count_++] = argument;
  return *this;
}

NormCall& NormCall::weight(const char* name, const at::Tensor& tensor) {
  operands_[weight_count_] = {name, tensor};
  check_weight(op_, operands_[weight_count_++], inputs_[0]);
  return *this;
}

NormCall& NormCall::weight(const char* name, const OptionalTensor& tensor) {
  if (tensor.has_value()) {
    return weight(name, *tensor);
  }
  ++weight_count_;
  return *this;
}

NormCall& NormCall::scale(const char* name, const at::Tensor& tensor) {
  operands_[kScale] = {name, tensor};
  check_scale(op_, operands_[kScale], inputs_[0]);
  return *this;
}

NormCall& NormCall::scale(const char* name, const OptionalTensor& tensor) {
  return tensor.has_value() ? scale(name, *tensor) : *this;
}

NormCall& NormCall::elementwise_scale(const char* name, const at::Tensor& tensor) {
  operands_[kScale] = {name, tensor};
  check_elementwise_scale(op_, operands_[kScale], inputs_[0]);
  return *this;
}

NormCall& NormCall::routing_weights(const char* name, const at::Tensor& tensor) {
  check_experts(op_, inputs_[0]);
  operands_[kRoutingWeights] = {name, tensor};
  check_routing_weights(op_, operands_[kRoutingWeights], inputs_[0]);
  return *this;
}

NormCall& NormCall::options(std::optional<double> eps, double weight_offset,
                            std::string_view casting_mode, bool round_intermediates) {
  options_ = make_options(op_, eps, weight_offset, casting_mode, round_intermediates);
  return *this;
}

NormCall& NormCall::activation(std::string_view activation) {
  activation_ = parse_activation(op_, activation);
  return *this;
}

void NormCall::check_out(const Argument& out) const {
  if (sums_experts()) {
    check_like_experts(op_, out, inputs_[0]);
  } else {
    check_like(op_, out, inputs_[0]);
  }
  check_contiguous(op_, out);
  for (int i = 0; i < input_count_; ++i) {
    // Experts are read in passes of their own; any other input is read where it is overwritten.
    check_no_overlap(qualified_name(op_), out, inputs_[i], /*allow_same=*/i > 0 || !sums_experts());
  }
  for (const Argument& operand : operands_) {
    if (operand) {
      check_no_overlap(qualified_name(op_), out, operand, /*allow_same=*/false);
    }
  }
}

}  // namespace mlxnorm
