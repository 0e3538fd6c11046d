// Versions of what `.out` overloads write. Not a task of the Autograd kernels: inference mode
// passes them by, and a normal tensor that is overwritten there may have been saved for a backward.
#include "../versions.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/util/SmallVector.h>

#include "boxed.h"

namespace mlxnorm {
namespace {

void count_versions(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                    torch::jit::Stack* stack) {
  const BoxedCall call(op, stack);
  c10::SmallVector<at::Tensor, kMaxResults> written;
  for (size_t i = 0; i < call.size(); ++i) {
    if (call.is_written(i)) {
      written.push_back(call[i].toTensor());
      check_may_be_written(call.op_name(), call.name(i).c_str(), written.back());
    }
  }
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const at::Tensor& out : written) {
    bump_version(out);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(mlxnorm, ADInplaceOrView, m) {
  for (const OpTable& op : kOps) {
    register_out<count_versions>(m, op_name(op.op));
  }
}

}  // namespace mlxnorm
