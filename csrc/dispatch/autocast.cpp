// Autocast gives some inputs of a float32 model a 16-bit dtype and leaves others, the residual
// stream above all. As PyTorch's promoting ops do, an op then runs in the widest of them, unless it
// takes a float32 residual as it is.
#include <ATen/autocast_mode.h>

#include "../call.h"
#include "boxed.h"

namespace mlxnorm {
namespace {

void promote(const c10::OperatorHandle& op, c10::DispatchKeySet /*keys*/,
             torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  const BoxedCall call(op, stack);
  const OpTable& table = table_of(call.op_name());
  std::vector<size_t> inputs;
  std::optional<at::ScalarType> widest;
  for (size_t t = 0; t < table.tensors.size(); ++t) {
    const Role role = table.tensors[t].role;
    if (!is_activation(role)) {
      continue;
    }
    const size_t i = argument_of_tensor(table, t);
    const at::ScalarType type = call[i].toTensor().scalar_type();
    if (!is_supported(type)) {
      inputs.clear();  // for the checks to refuse
      break;
    }
    if (role == Role::residual && type == at::kFloat) {
      continue;
    }
    widest = widest.has_value() ? c10::promoteTypes(*widest, type) : type;
    inputs.push_back(i);
  }
  for (const size_t i : inputs) {
    call[i] = call[i].toTensor().to(*widest);
  }
  op.callBoxed(stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, AutocastCPU, m) {
  register_for_every_op<promote>(m);
}
TORCH_LIBRARY_IMPL(mlxnorm, AutocastMPS, m) {
  register_for_every_op<promote>(m);
}

}  // namespace mlxnorm
