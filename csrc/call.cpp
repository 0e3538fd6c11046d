#include "call.h"

#include <limits>

#include <c10/util/Exception.h>

namespace mlxnorm {
namespace {

float eps_of(std::optional<double> eps) {
  // As torch.nn.functional.rms_norm takes None: in the dtype that it computes in.
  return float(eps.value_or(std::numeric_limits<float>::epsilon()));
}

float number_of(Number which, double value) {
  // Adding -0.0 changes no weight; adding 0.0 would turn a weight of -0.0 into 0.0.
  return which == kWeightOffset && value == 0.0 ? -0.0f : float(value);
}

// Rounded to that dtype, as PyTorch does with a number beside 16-bit tensors, unless nothing is
// left of it: a norm that is 0 is divided by it.
float as_stored(at::ScalarType type, float eps) {
  const float rounded = type == at::kHalf       ? float(at::Half(eps))
                        : type == at::kBFloat16 ? float(at::BFloat16(eps))
                                                : eps;
  return rounded != 0.0f ? rounded : eps;
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

uint32_t parse_choices(const OpTable& op, const c10::Dict<std::string, std::string>& choices) {
  uint32_t result = 0;
  for (const Option option : op.options) {
    if (option.kind != Option::choice) {
      continue;
    }
    const Choice which = Choice(option.which);
    uint32_t value = option.initially;
    if (const auto given = choices.find(option.name()); given != choices.end()) {
      const bool named = !kChoiceSpecs[which].values.empty();
      value = named ? parse_choice(op.name, which, given->value()) : given->value() == "True";
    }
    result |= pack_choice(which, value);
  }
  return result;
}

NormCall::NormCall(const OpTable& op, const c10::IValue* arguments) : op_(op) {
  const c10::IValue& eps = arguments[argument_of_eps(op)];
  options_.eps = eps_of(eps.isNone() ? std::nullopt : std::optional(eps.toDouble()));
  for (size_t i = 0; i < op.options.size(); ++i) {
    read_option(op.options[i], arguments[argument_of_option(op, i)]);
  }
  for (size_t t = 0; t < op.tensors.size(); ++t) {
    const c10::IValue& value = arguments[argument_of_tensor(op, t)];
    if (!value.isNone()) {
      TORCH_CHECK_TYPE(value.toTensor().defined(), op.name, ": ", op.tensors[t].name,
                       " must be a tensor, got None");
      tensors_[t] = {op.tensors[t].name, value.toTensor(), op.tensors[t].role};
    }
  }
  for (size_t s = 0; s < op.segment_count; ++s) {
    check_segment(op.segments[s]);
  }
  check_group_size(op.name, group_size(), first());
  const uint32_t form = choice_in(options_.choices, kForm);
  if (has_option(op.options, kForm) && (form == kNormalize || form == kRmsSteps)) {
    options_.eps = as_stored(first().tensor->scalar_type(), options_.eps);
  }
}

void NormCall::check_segment(const Segment& segment) {
  const Argument& x = first(segment);
  if (&x != &first()) {
    check_beside(op_.name, x, first());
  }
  for (size_t i = 0; i < segment.count; ++i) {
    if (const Argument& argument = tensor(segment, i)) {
      check_tensor(op_.name, argument, x, across_heads());
    }
  }
  read_angles(segment);
}

void NormCall::read_angles(const Segment& segment) {
  const Argument* cos = nullptr;  // or whatever table is the first
  for (size_t i = 0; i < segment.count; ++i) {
    const Argument& table = tensor(segment, i);
    if (table && table.role == Role::angles) {
      cos = cos == nullptr ? &table : cos;
      const bool full = check_angles(op_.name, table, *cos, first(segment), has_full_tables());
      options_.choices |= pack_choice(kFullTables, full);
    }
  }
}

const Argument& NormCall::tensor(const Segment& segment, size_t i) const {
  static const Argument absent;
  return segment.tensors[i] == kNoTensor ? absent : tensors_[segment.tensors[i]];
}

void NormCall::read_option(Option option, const c10::IValue& value) {
  switch (option.kind) {
    case Option::number:
      options_.numbers[option.which] = number_of(Number(option.which), value.toDouble());
      break;
    case Option::integer:
      integers_[option.which] = value.toInt();
      break;
    case Option::choice:
      const Choice which = Choice(option.which);
      options_.choices |=
          pack_choice(which, value.isBool() ? value.toBool()
                                            : parse_choice(op_.name, which, value.toStringRef()));
  }
}

void NormCall::read_outs(const c10::IValue* arguments, const at::Tensor** outs) const {
  for (size_t r = 0; r < op_.results.size(); ++r) {
    outs[r] = &arguments[argument_of_out(op_, r)].toTensor();
    const Argument out(op_.results[r].name, *outs[r]);
    check_out(r, out);
    for (size_t other = 0; other < r; ++other) {
      check_no_overlap(op_.name, out, {op_.results[other].name, *outs[other]},
                       /*allow_same=*/false);
    }
  }
}

void NormCall::check_out(size_t r, const Argument& out) const {
  mlxnorm::check_out(op_.name, out, tensors_[op_.likes[r]], group_size(), across_heads());
  for (size_t t = 0; t < op_.tensors.size(); ++t) {
    if (tensors_[t]) {
      check_no_overlap(op_.name, out, tensors_[t], may_be_same(op_, r, t));
    }
  }
}

const at::Tensor& NormCall::like(size_t r) const {
  size_t t = op_.likes[r];
  while (!has_shape_of_results(op_.tensors[t].role)) {
    ++t;  // an input of that shape follows: table_of asks for it
  }
  return *tensors_[t].tensor;
}

}  // namespace mlxnorm
