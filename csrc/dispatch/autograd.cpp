// The ops are for inference: a result that would carry a gradient raises at backward, a tangent or
// an `.out` overload that would lose a gradient raises at once.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include "boxed.h"

namespace mlxnorm {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;

[[noreturn]] void raise_no_backward(std::string_view op) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op,
                              ": inference only, it has no backward; call it under "
                              "torch.no_grad() or on tensors that do not require grad");
}

// mlxnorm::_no_backward stands for a gradient in graphs that torch.compile traces although nobody
// may ever run them: it has a shape, and raises where it should have a value.
at::Tensor no_backward(const at::Tensor& /*grad*/, at::IntArrayRef /*size*/,
                       at::ScalarType /*dtype*/, std::string_view op) {
  raise_no_backward(op);
}

at::Tensor no_backward_meta(const at::Tensor& grad, c10::SymIntArrayRef size, at::ScalarType dtype,
                            std::string_view /*op*/) {
  return at::empty_symint(size, grad.options().dtype(dtype));
}

at::Tensor trace_no_backward(const at::Tensor& grad, c10::SymIntArrayRef size, at::ScalarType dtype,
                             std::string_view op) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("mlxnorm::_no_backward", "")
                                 .typed<decltype(no_backward_meta)>();
  return handle.call(grad, size, dtype, op);
}

// The grad_fn of a result.
class InferenceOnly : public Node {
 public:
  InferenceOnly(std::string op, const variable_list& inputs)
      : Node(torch::autograd::collect_next_edges(inputs)), op_(std::move(op)) {
    for (const at::Tensor& input : inputs) {
      const auto sizes = input.sym_sizes();
      inputs_.push_back({{sizes.begin(), sizes.end()}, input.scalar_type()});
    }
  }

  variable_list apply(variable_list&& grads) override {
    if (!c10::impl::dispatch_mode_enabled()) {
      raise_no_backward(op_);
    }
    variable_list result;
    for (const at::Tensor& grad : grads) {
      if (grad.defined()) {
        for (const auto& [sizes, dtype] : inputs_) {
          result.push_back(trace_no_backward(grad, sizes, dtype, op_));
        }
        break;
      }
    }
    return result;
  }

  std::string name() const override { return "MlxnormInferenceOnly"; }

 private:
  struct Input {
    c10::SymDimVector sizes;
    at::ScalarType dtype;
  };

  std::string op_;
  std::vector<Input> inputs_;
};

// PyTorch's pointers to nodes were shared_ptr in 2.8 and are intrusive_ptr since.
template <typename Pointer = decltype(torch::autograd::Edge::function), typename... Arguments>
Pointer make_node(Arguments&&... arguments) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>) {
    return std::make_shared<InferenceOnly>(std::forward<Arguments>(arguments)...);
  } else {
    return c10::make_intrusive<InferenceOnly>(std::forward<Arguments>(arguments)...);
  }
}

void inference_only(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                    torch::jit::Stack* stack) {
  const BoxedCall call(op, stack);
  const bool grad_enabled = c10::GradMode::is_enabled();
  variable_list differentiable;
  bool writes = false;
  for (size_t i = 0; i < call.size(); ++i) {
    if (!call.is_tensor(i)) {
      continue;
    }
    const at::Tensor& tensor = call[i].toTensor();
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(tensor), call.op_name(),
                                ": inference only, it has no forward-mode derivative, but ",
                                call.name(i), " has a tangent (torch.func.jvp, make_dual)");
    if (grad_enabled && tensor.requires_grad()) {
      differentiable.push_back(tensor);
    }
    writes = writes || call.is_written(i);
  }
  TORCH_CHECK(!writes || differentiable.empty(), call.op_name(),
              ": out= does not support automatic differentiation, but an argument requires grad; "
              "call it under torch.no_grad()");
  if (differentiable.empty()) {
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
    return;
  }
  const auto node = make_node(call.op_name(), differentiable);
  {
    const at::AutoDispatchBelowAutograd guard;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }
  for (const c10::IValue& result : torch::jit::last(*stack, op.schema().returns().size())) {
    torch::autograd::set_history(result.toTensor(), node);
  }
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mlxnorm, m) {
  m.def("_no_backward(Tensor grad, SymInt[] size, ScalarType dtype, str op) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(mlxnorm, CompositeExplicitAutograd, m) {
  m.impl("_no_backward", no_backward);
}

TORCH_LIBRARY_IMPL(mlxnorm, Meta, m) {
  m.impl("_no_backward", no_backward_meta);
}

TORCH_LIBRARY_IMPL(mlxnorm, Autograd, m) {
  register_for_every_op<inference_only>(m);
}

}  // namespace mlxnorm
