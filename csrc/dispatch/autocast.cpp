// Autocast gives some activations of a float32 model a 16-bit dtype and leaves others, the residual
// stream above all. As PyTorch's promoting ops do, an op then runs in the widest of them.
#include <ATen/autocast_mode.h>

#include <algorithm>

#include "../ops/ops.h"
#include "boxed.h"

namespace mlxnorm {
namespace {

template <typename Op>
void promote(const c10::OperatorHandle& op, c10::DispatchKeySet /*keys*/,
             torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  const BoxedCall call(op, stack);
  std::vector<size_t> activations;
  std::optional<at::ScalarType> widest;
  for (size_t i = 0; i < call.size(); ++i) {
    if (!is_activation<Op>(call.name(i))) {
      continue;
    }
    const at::ScalarType type = call[i].toTensor().scalar_type();
    if (!is_supported(type)) {
      activations.clear();  // for the checks to refuse
      break;
    }
    widest = widest.has_value() ? c10::promoteTypes(*widest, type) : type;
    activations.push_back(i);
  }
  for (const size_t i : activations) {
    call[i] = call[i].toTensor().to(*widest);
  }
  op.callBoxed(stack);
}

void register_promote(torch::Library& m) {
#define MLXNORM_PROMOTE(op)                      \
  register_functional<promote<ops::op>>(m, #op); \
  register_out<promote<ops::op>>(m, #op);
  MLXNORM_FOR_EACH_OP(MLXNORM_PROMOTE)
#undef MLXNORM_PROMOTE
}

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, AutocastCPU, m) {
  register_promote(m);
}
TORCH_LIBRARY_IMPL(mlxnorm, AutocastMPS, m) {
  register_promote(m);
}

}  // namespace mlxnorm
