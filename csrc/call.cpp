#include "call.h"

#include <limits>

#include <c10/util/Exception.h>

namespace mlxnorm {
namespace {

float eps_of(std::optional<double> eps) {
  // As torch.nn.functional.rms_norm takes None: in the dtype that it computes in.
  return float(eps.value_or(std::numeric_limits<float>::epsilon()));
}

float weight_offset_of(double offset) {
  // Adding -0.0 changes no weight; adding 0.0 would turn a weight of -0.0 into 0.0.
  return offset == 0.0 ? -0.0f : float(offset);
}

void read_option(const char* op, Option option, const c10::IValue& value, NormOptions& options) {
  switch (option) {
    case Option::activation:
      options.activation = parse_activation(op, value.toStringRef());
      break;
    case Option::weight_offset:
      options.weight_offset = weight_offset_of(value.toDouble());
      break;
    case Option::casting_mode:
      options.casting_mode = parse_casting_mode(op, value.toStringRef());
      break;
    case Option::round_intermediates:
      options.round_intermediates = value.toBool();
      break;
  }
}

}  // namespace

const OpTable& table_of(std::string_view name) {
  for (const OpTable& op : kOps) {
    if (name == op.name || name == op_name(op.op)) {
      return op;
    }
  }
  TORCH_CHECK_VALUE(false, "mlxnorm has no operator ", name);
}

NormOptions make_options(const char* op, std::optional<double> eps, double weight_offset,
                         std::string_view casting_mode) {
  return {eps_of(eps), weight_offset_of(weight_offset), parse_casting_mode(op, casting_mode)};
}

NormCall::NormCall(const OpTable& op, const c10::IValue* arguments) : op_(op) {
  for (size_t t = 0; t < op.tensors.size(); ++t) {
    const c10::IValue& value = arguments[argument_of_tensor(op, t)];
    if (!value.isNone()) {
      tensors_[t] = {op.tensors[t].name, value.toTensor(), op.tensors[t].role};
      check_tensor(op.name, tensors_[t], first());
    }
  }
  const c10::IValue& eps = arguments[argument_of_eps(op)];
  options_.eps = eps_of(eps.isNone() ? std::nullopt : std::optional(eps.toDouble()));
  for (size_t i = 0; i < op.options.size(); ++i) {
    read_option(op.name, op.options[i], arguments[argument_of_option(op, i)], options_);
  }
}

void NormCall::check_out(size_t r, const Argument& out) const {
  mlxnorm::check_out(op_.name, out, tensors_[op_.likes[r]]);
  for (size_t t = 0; t < op_.tensors.size(); ++t) {
    if (tensors_[t]) {
      // Experts are read in passes of their own; any other input is read where it is overwritten.
      check_no_overlap(op_.name, out, tensors_[t],
                       /*allow_same=*/tensors_[t].role == Role::input);
    }
  }
}

const at::Tensor& NormCall::like(size_t r) const {
  size_t t = op_.likes[r];
  while (op_.tensors[t].role != Role::input) {
    ++t;  // an input of that shape follows: table_of asks for it
  }
  return *tensors_[t].tensor;
}

}  // namespace mlxnorm
