// Tensors whose values are not what lies in memory: pending negations and conjugations, and zeros
// that have no memory. PyTorch's own fallbacks for them expect an op to return what it writes.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include "../checks.h"
#include "boxed.h"

namespace mlxnorm {
namespace {

bool is_lazy(const at::Tensor& tensor) {
  return tensor.is_neg() || tensor.is_conj() || tensor._is_zerotensor();
}

at::Tensor materialized(const at::Tensor& tensor) {
  if (tensor._is_zerotensor()) {
    return at::zeros({}, tensor.options()).expand_symint(tensor.sym_sizes());
  }
  return tensor.resolve_conj().resolve_neg();
}

void materialize(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                 torch::jit::Stack* stack) {
  const BoxedCall call(op, stack);
  std::vector<Argument> outs;  // by which a lazy one must not be overwritten unnoticed
  std::vector<std::pair<at::Tensor, at::Tensor>> to_copy;
  std::vector<at::Tensor> originals;
  originals.reserve(call.size());
  for (size_t i = 0; i < call.size(); ++i) {
    if (!call.is_tensor(i)) {
      continue;
    }
    const at::Tensor& tensor = originals.emplace_back(call[i].toTensor());
    if (call.is_written(i)) {
      const Argument out(call.name(i).c_str(), tensor);
      for (const Argument& other : outs) {
        check_no_overlap(call.op_name(), out, other, /*allow_same=*/false);
      }
      outs.push_back(out);
    }
    if (!is_lazy(tensor)) {
      continue;
    }
    if (call.is_written(i)) {
      TORCH_CHECK(!tensor._is_zerotensor(), call.op_name(), ": ", call.name(i),
                  " must not be a ZeroTensor, which is immutable; make a clone before");
      to_copy.emplace_back(tensor, at::empty_like(tensor, at::MemoryFormat::Contiguous));
      call[i] = to_copy.back().second;
    } else {
      call[i] = materialized(tensor);
    }
  }
  constexpr c10::DispatchKeySet kBelow(c10::DispatchKeySet::FULL_AFTER,
                                       c10::DispatchKey::Conjugate);
  op.redispatchBoxed(keys & kBelow, stack);
  for (const auto& [out, values] : to_copy) {
    out.copy_(values);
  }
}

}  // namespace

// One kernel under three keys, of which Conjugate is the last to be dispatched to.
TORCH_LIBRARY_IMPL(mlxnorm, ZeroTensor, m) {
  register_for_every_op<materialize>(m);
}
TORCH_LIBRARY_IMPL(mlxnorm, Negative, m) {
  register_for_every_op<materialize>(m);
}
TORCH_LIBRARY_IMPL(mlxnorm, Conjugate, m) {
  register_for_every_op<materialize>(m);
}

}  // namespace mlxnorm
