// The schema of every op. Each has an `.out` overload that returns nothing, which is the form that
// functionalization under torch.compile accepts.
#include <torch/library.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "dispatch/boxed.h"
#include "record.h"

namespace mlxnorm {
namespace {

std::string argument(const TensorSpec& tensor) {
  const std::string name = tensor.name;
  switch (tensor.passing) {
    case Passing::required:
      return "Tensor " + name;
    case Passing::optional:
      return "Tensor? " + name;
    case Passing::defaulted:
    case Passing::keyword:
    case Passing::extra:
      return "Tensor? " + name + "=None";
  }
  return {};
}

std::string argument(Option option) {
  const std::string name = option.name();
  switch (option.kind) {
    case Option::number:
      return "float " + name + "=" + kNumberSpecs[option.which].initially;
    case Option::integer:
      return "int " + name + "=" + kIntegerSpecs[option.which].initially;
    case Option::choice:
      break;
  }
  const auto values = kChoiceSpecs[option.which].values;
  return values.empty() ? "bool " + name + (option.initially ? "=True" : "=False")
                        : "str " + name + "=\"" + std::string(values[option.initially]) + "\"";
}

// Positions as argument_of_tensor and its neighbours have them.
std::string arguments_of(const OpTable& op) {
  std::string result;
  for (size_t t = 0; t < op.positional; ++t) {
    result += argument(op.tensors[t]) + ", ";
  }
  result += std::string("float? eps=") + op.eps + ", *";
  for (size_t t = op.positional; t < op.tensors.size(); ++t) {
    result += ", " + argument(op.tensors[t]);
  }
  for (const Option option : op.options) {
    result += ", " + argument(option);
  }
  return result;
}

void define(torch::Library& m, const OpTable& op) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  const std::string name = op_name(op.op), arguments = arguments_of(op);
  std::string returned, outs, examples;
  char alias = 'a';
  for (const ResultSpec& result : op.results) {
    returned += returned.empty() ? "Tensor" : ", Tensor";
    outs += std::string(", Tensor(") + alias++ + "!) " + result.name;
    examples += std::string(", Tensor ") + result.name;
  }
  if (op.results.size() > 1) {
    returned = "(" + returned + ")";
  }
  m.def((name + "(" + arguments + ") -> " + returned).c_str(), tags);
  m.def((name + ".out(" + arguments + outs + ") -> ()").c_str(), tags);
  // Behind torch_mlxnorm.prebake (record.h).
  m.def(("_bake_" + name + "(" + arguments + examples +
         ", Device device) -> __torch__.torch.classes.mlxnorm.Record")
            .c_str());
}

void refuse_to_bake(const c10::OperatorHandle& /*op*/, c10::DispatchKeySet /*keys*/,
                    torch::jit::Stack* stack) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "mlxnorm::prebake: device must be cpu or mps, got ",
                              stack->back().toDevice());
}

}  // namespace

TORCH_LIBRARY(mlxnorm, m) {
  m.class_<Record>("Record");
  for (const OpTable& op : kOps) {
    define(m, op);
  }
  // Behind torch_mlxnorm/pipelines.py. Of `like` its dtype and device count, of the op's tensors
  // their dtypes, and whether they have one element; of the options, those that are choices.
  m.def(
      "_warm_up(Tensor like, str op, int dim, Tensor?[] tensors, bool[] one_element, "
      "bool unaligned, Dict(str, str) choices) -> ()");
  m.def("_compiled_kernels(Tensor like) -> (str[] names, str[] origins, float[] seconds)");
}

// Devices without records, and those that compile nothing at run time.
TORCH_LIBRARY_IMPL(mlxnorm, CompositeExplicitAutograd, m) {
  for (const OpTable& op : kOps) {
    register_functional<refuse_to_bake>(m, std::string("_bake_") + op_name(op.op));
  }
  m.impl("_warm_up", [](const at::Tensor&, std::string_view op, int64_t,
                        const c10::List<std::optional<at::Tensor>>&, const c10::List<bool>&, bool,
                        const c10::Dict<std::string, std::string>& choices) {
    parse_choices(table_of(op), choices);
  });
  m.impl("_compiled_kernels", [](const at::Tensor&) {
    return std::tuple<std::vector<std::string>, std::vector<std::string>, std::vector<double>>();
  });
}

}  // namespace mlxnorm
