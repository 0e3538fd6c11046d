// The ops are for inference: a result that would carry a gradient raises at backward, and an `.out`
// overload that would lose one raises at once. One boxed kernel serves every op.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "types.h"

namespace mlxnorm {
namespace {

using torch::autograd::variable_list;

void redispatch(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

// Runs the op and ties its results to a node whose backward explains itself.
struct InferenceOnly : torch::autograd::Function<InferenceOnly> {
  static variable_list forward(torch::autograd::AutogradContext* context,
                               at::TensorList /*inputs: the edges of the graph*/,
                               const c10::OperatorHandle* op, c10::DispatchKeySet keys,
                               torch::jit::Stack* stack) {
    context->saved_data["op"] = op->schema().name();
    redispatch(*op, keys, stack);
    variable_list outputs;
    for (const auto& output : *stack) {
      outputs.push_back(output.toTensor());
    }
    return outputs;
  }

  static variable_list backward(torch::autograd::AutogradContext* context,
                                const variable_list& /*grad_outputs*/) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, context->saved_data["op"].toStringRef(),
                                ": inference only, it has no backward; call it under "
                                "torch.no_grad() or on tensors that do not require grad");
  }
};

void inference_only(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                    torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const size_t first = stack->size() - arguments.size();

  variable_list differentiable;
  std::vector<at::Tensor> written;
  const bool grad_enabled = c10::GradMode::is_enabled();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& value = (*stack)[first + i];
    if (!value.isTensor()) {
      continue;
    }
    const at::Tensor& tensor = value.toTensor();
    const bool requires_grad = grad_enabled && tensor.requires_grad();
    if (requires_grad) {
      differentiable.push_back(tensor);
    }
    const auto* alias = arguments[i].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      written.push_back(tensor);
    }
  }
  if (!written.empty()) {
    TORCH_CHECK(differentiable.empty(), op.schema().name(),
                ": out= does not support automatic differentiation, but an argument requires "
                "grad; call it under torch.no_grad()");
    redispatch(op, keys, stack);
    for (const auto& tensor : written) {
      if (!tensor.is_inference()) {
        tensor.unsafeGetTensorImpl()->bump_version();
      }
    }
    return;
  }
  if (differentiable.empty()) {
    redispatch(op, keys, stack);
    return;
  }
  torch::jit::Stack call(std::make_move_iterator(stack->begin() + first),
                         std::make_move_iterator(stack->end()));
  stack->resize(first);
  for (auto& output : InferenceOnly::apply(at::TensorList(differentiable), &op, keys, &call)) {
    stack->emplace_back(std::move(output));
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, Autograd, m) {
#define MLXNORM_INFERENCE_ONLY(op)                                              \
  for (const char* name : {#op, #op ".out"}) {                                  \
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&inference_only>()); \
  }
  MLXNORM_FOR_EACH_OP(MLXNORM_INFERENCE_ONLY)
#undef MLXNORM_INFERENCE_ONLY
}

}  // namespace mlxnorm
