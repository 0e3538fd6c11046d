// What stands between a call and the kernel of its device is the same for every op: boxed kernels,
// one for each dispatch key that needs one.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "../ops/ops.h"

namespace mlxnorm {

using BoxedKernel = void(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                         torch::jit::Stack* stack);

// The arguments of a call, which stay on the stack.
class BoxedCall {
 public:
  BoxedCall(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : schema_(op.schema()), stack_(stack), first_(stack->size() - schema_.arguments().size()) {}

  const char* op_name() const { return schema_.name().c_str(); }  // "mlxnorm::OP"
  size_t size() const { return schema_.arguments().size(); }
  const std::string& name(size_t i) const { return schema_.arguments()[i].name(); }
  c10::IValue& operator[](size_t i) const { return (*stack_)[first_ + i]; }

  // An optional tensor that is None is no tensor.
  bool is_tensor(size_t i) const {
    const c10::IValue& value = (*this)[i];
    return value.isTensor() && value.toTensor().defined();
  }

  // Is this an `out` argument?
  bool is_written(size_t i) const {
    const auto* alias = schema_.arguments()[i].alias_info();
    return alias != nullptr && alias->isWrite();
  }

 private:
  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  size_t first_;
};

template <BoxedKernel kernel>
void register_functional(torch::Library& m, const std::string& op) {
  m.impl(op.c_str(), torch::CppFunction::makeFromBoxedFunction<kernel>());
}

template <BoxedKernel kernel>
void register_out(torch::Library& m, const std::string& op) {
  m.impl((op + ".out").c_str(), torch::CppFunction::makeFromBoxedFunction<kernel>());
}

// One kernel for both overloads of every op.
template <BoxedKernel kernel>
void register_for_every_op(torch::Library& m) {
  for (const OpTable& op : kOps) {
    register_functional<kernel>(m, op_name(op.op));
    register_out<kernel>(m, op_name(op.op));
  }
}

}  // namespace mlxnorm
