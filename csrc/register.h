// The functional and the `.out` kernel of every op on a device.
//
// A Device has
//   check_limits(call, device)  refuses what only this device cannot do
//   empty(like)                 an uninitialised contiguous tensor
//   run(call, outs)             the op; outs are checked, one for each result
// and, if it has records (record.h),
//   bake(call, outs, device)    a record of such calls
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <utility>

#include "call.h"
#include "dispatch/boxed.h"
#include "record.h"

namespace mlxnorm {

template <Op op, typename Device>
void run_functional(const c10::OperatorHandle& /*op*/, c10::DispatchKeySet /*keys*/,
                    torch::jit::Stack* stack) {
  constexpr const OpTable& kTable = table_of(op);
  constexpr size_t kResults = kTable.results.size(), kArguments = argument_of_out(kTable, 0);
  at::Tensor results[kResults];
  {
    const NormCall call(kTable, stack->data() + stack->size() - kArguments);
    Device::check_limits(call, call.first().tensor->device());
    const at::Tensor* outs[kResults];
    for (size_t r = 0; r < kResults; ++r) {
      // Memory of channels stays in the format that it has.
      results[r] =
          has_channels(kTable) ? at::empty_like(call.like(r)) : Device::empty(call.like(r));
      outs[r] = &results[r];
    }
    Device::run(call, outs);
  }
  torch::jit::drop(*stack, kArguments);
  for (at::Tensor& result : results) {
    stack->emplace_back(std::move(result));
  }
}

template <Op op, typename Device>
void run_out(const c10::OperatorHandle& /*op*/, c10::DispatchKeySet /*keys*/,
             torch::jit::Stack* stack) {
  constexpr const OpTable& kTable = table_of(op);
  constexpr size_t kResults = kTable.results.size(), kArguments = argument_of_out(kTable, kResults);
  const c10::IValue* arguments = stack->data() + stack->size() - kArguments;
  const NormCall call(kTable, arguments);
  const at::Tensor* outs[kResults];
  call.read_outs(arguments, outs);
  Device::check_limits(call, call.first().tensor->device());
  Device::run(call, outs);
  torch::jit::drop(*stack, kArguments);
}

template <typename Device>
void register_kernels(torch::Library& m) {
#define MLXNORM_REGISTER(op)                                   \
  register_functional<run_functional<Op::op, Device>>(m, #op); \
  register_out<run_out<Op::op, Device>>(m, #op);
  MLXNORM_FOR_EACH_OP(MLXNORM_REGISTER)
#undef MLXNORM_REGISTER
}

template <typename Device>
void register_records(torch::Library& m) {
#define MLXNORM_REGISTER(op) register_functional<bake<Op::op, Device>>(m, "_bake_" #op);
  MLXNORM_FOR_EACH_OP(MLXNORM_REGISTER)
#undef MLXNORM_REGISTER
}

}  // namespace mlxnorm
