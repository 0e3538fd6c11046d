// A prebaked rms_norm: kernel, geometry and pipeline chosen once, for calls that differ in their
// tensors alone.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <optional>
#include <string>
#include <string_view>

#include "call.h"
#include "row_layout.h"

namespace mlxnorm {

class RmsNormRecord : public torch::CustomClassHolder {
 public:
  // What a call has to bring. Tensors are contiguous.
  struct Spec {
    at::ScalarType dtype;
    at::Device device;
    int64_t rows;
    int64_t dim;
    std::optional<at::ScalarType> weight_dtype;  // none: no weight
    NormOptions options;

    NormLayout layout() const;
  };

  // Refuses what no tensor can be.
  explicit RmsNormRecord(const Spec& spec);

  // Refuses tensors that do not fit.
  void operator()(const at::Tensor& x, const OptionalTensor& weight, const at::Tensor& out) const;

 private:
  // Tensors by the numbers of the op's table.
  virtual void run(const TensorPointers& tensors, const at::Tensor& out) const = 0;

  void check_rows(const Argument& argument) const;
  void check_weight(const OptionalTensor& weight) const;

  Spec spec_;
};

using RecordPointer = c10::intrusive_ptr<RmsNormRecord>;

// `like` says on which device.
RecordPointer bake(const at::Tensor& like, at::ScalarType dtype, int64_t rows, int64_t dim,
                   std::optional<at::ScalarType> weight_dtype, std::optional<double> eps,
                   double weight_offset, std::string_view casting_mode);

// The kernel of mlxnorm::_bake_rms_norm on a device whose record is a `Record`: the dispatcher
// finds the device. Boxed, because a device may be loaded before the schema's class is known.
template <typename Record>
void bake_rms_norm(const c10::OperatorHandle& /*op*/, c10::DispatchKeySet /*keys*/,
                   torch::jit::Stack* stack) {
  at::Tensor like;
  at::ScalarType dtype;
  int64_t rows, dim;
  std::optional<at::ScalarType> weight_dtype;
  std::optional<double> eps;
  double weight_offset;
  std::string casting_mode;
  torch::jit::pop(*stack, like, dtype, rows, dim, weight_dtype, eps, weight_offset, casting_mode);
  const NormOptions options =
      make_options(qualified_name(Op::rms_norm), eps, weight_offset, casting_mode);
  const RecordPointer record = c10::make_intrusive<Record>(
      RmsNormRecord::Spec{dtype, like.device(), rows, dim, weight_dtype, options});
  stack->emplace_back(record);
}

}  // namespace mlxnorm
