// A prebaked call of an op: kernels, geometry and pipelines chosen once, for calls that differ in
// the addresses of their tensors alone.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <span>
#include <string>

#include "call.h"
#include "row_layout.h"

namespace mlxnorm {

class Record : public torch::CustomClassHolder {
 public:
  // One of several that follow each other. Borrows everything.
  struct Call {
    const Record* record;
    TensorPointers tensors{};  // by the numbers of the op's table
    const at::Tensor* outs[kMaxResults] = {};
  };

  const OpTable& op() const { return op_; }
  c10::Device device() const { return device_; }
  const char* name() const { return name_.c_str(); }  // that errors begin with

  // Refuses them all before it runs one. Records are of one device.
  static void run(std::span<const Call> calls);

 protected:
  // Of a call with tensors that lie as those of the calls to come, on any device.
  Record(const NormCall& call, const at::Tensor* const* outs, c10::Device device);

  // A segment with rows, none of whose tensors has to be copied.
  struct Part {
    const Segment* segment;
    NormLayout layout;
  };
  using Parts = c10::SmallVector<Part, 1>;
  const Parts& parts() const { return parts_; }
  const NormOptions& options() const { return options_; }

 private:
  // What a tensor has to be.
  struct Operand {
    const char* name = nullptr;
    bool given = false;
    at::ScalarType dtype = at::kFloat;
    c10::DimVector sizes, strides;
    int64_t kept = 1;  // dimensions of a row
  };

  // Calls of records of this device, checked.
  virtual void run_checked(std::span<const Call> calls) const = 0;

  Operand operand(const Argument& argument, bool across_heads) const;
  void bake_parts(const NormCall& call, const at::Tensor* const* outs);
  void check_copies(const NormCall& call, const TensorPointers& tensors, const Segment& segment,
                    bool copied) const;

  void check(const Call& call) const;
  bool fits(const Operand& operand, const at::Tensor& tensor) const;
  void check_fit(const Operand& operand, const at::Tensor* tensor) const;
  void check_derivatives(const Operand& operand, const at::Tensor& tensor) const;
  void check_overlaps(const Call& call, size_t r) const;

  const OpTable& op_;
  std::string name_;
  c10::Device device_;
  c10::DispatchKeySet keys_;  // of a plain tensor there
  NormOptions options_;
  Operand tensors_[kMaxTensors], outs_[kMaxResults];
  Parts parts_;
};

using RecordPointer = c10::intrusive_ptr<Record>;

// The kernel of mlxnorm::_bake_OP on a device, of the arguments of OP.out and the device: its
// tensors may be meta tensors.
template <Op op, typename Device>
void bake(const c10::OperatorHandle& /*op*/, c10::DispatchKeySet /*keys*/,
          torch::jit::Stack* stack) {
  constexpr const OpTable& kTable = table_of(op);
  constexpr size_t kArguments = argument_of_out(kTable, kTable.results.size()) + 1;
  const c10::IValue* arguments = stack->data() + stack->size() - kArguments;
  const c10::Device device = arguments[kArguments - 1].toDevice();
  const NormCall call(kTable, arguments);
  const at::Tensor* outs[kMaxResults];
  call.read_outs(arguments, outs);
  Device::check_limits(call, device);
  const RecordPointer record = Device::bake(call, outs, device);
  torch::jit::drop(*stack, kArguments);
  stack->emplace_back(record);
}

// By the arguments of mlxnorm::_bake_OP.
RecordPointer bake(const c10::OperatorHandle& op, torch::jit::Stack arguments);

}  // namespace mlxnorm
