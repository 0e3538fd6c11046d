// A prebaked rms_norm: kernel, geometry and pipeline chosen once, for calls that differ in their
// tensors alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string_view>

#include "call.h"
#include "rows.h"

namespace mlxnorm {

class RmsNormRecord {
 public:
  // What a call has to bring. Tensors are contiguous.
  struct Spec {
    at::ScalarType dtype;
    at::Device device;
    int64_t rows;
    int64_t dim;
    std::optional<at::ScalarType> weight_dtype;  // none: no weight
    NormOptions options;

    uint32_t operand_types() const {
      return weight_dtype.has_value()
                 ? pack_operand_type(0, operand_type_of(dtype_of(*weight_dtype)))
                 : 0;
    }
  };

  // Refuses what no tensor can be.
  explicit RmsNormRecord(const Spec& spec);
  virtual ~RmsNormRecord() = default;

  // Refuses tensors that do not fit.
  void operator()(const at::Tensor& x, const OptionalTensor& weight, const at::Tensor& out) const;

 protected:
  const Spec& spec() const { return spec_; }

 private:
  virtual void run(const at::Tensor& x, const OptionalTensor& weight,
                   const at::Tensor& out) const = 0;

  void check_rows(const Argument& argument) const;
  void check_weight(const OptionalTensor& weight) const;

  Spec spec_;
};

// `like` says on which device.
std::unique_ptr<RmsNormRecord> bake(const at::Tensor& like, at::ScalarType dtype, int64_t rows,
                                    int64_t dim, std::optional<at::ScalarType> weight_dtype,
                                    std::optional<double> eps, double weight_offset,
                                    std::string_view casting_mode);

// The kernel of mlxnorm::_bake_rms_norm on a device whose record is a `Record`. The dispatcher
// finds the device; the result is the address of a RmsNormRecord that the caller owns.
template <typename Record>
int64_t bake_rms_norm(const at::Tensor& like, at::ScalarType dtype, int64_t rows, int64_t dim,
                      std::optional<at::ScalarType> weight_dtype, std::optional<double> eps,
                      double weight_offset, std::string_view casting_mode) {
  const RmsNormRecord* record =
      new Record({dtype, like.device(), rows, dim, weight_dtype,
                  make_options(Op::rms_norm, eps, weight_offset, casting_mode)});
  return reinterpret_cast<int64_t>(record);
}

}  // namespace mlxnorm
