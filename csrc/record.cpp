#include "record.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>

#include <string>

#include "versions.h"

namespace mlxnorm {
namespace {

constexpr const char* kName = "mlxnorm::RmsNormRecord";
constexpr size_t kX = number_of<ops::rms_norm>("x"), kWeight = number_of<ops::rms_norm>("weight"),
                 kBias = number_of<ops::rms_norm>("bias");

std::string dtype_name(at::ScalarType type) {
  return std::string(c10::getDtypeNames(type).first);
}

// Without the dispatcher nobody unwraps subclasses, functorch's tensors or lazy negations.
bool needs_no_dispatch(const at::Tensor& tensor) {
  using c10::DispatchKeySet;
  const DispatchKeySet keys = tensor.key_set();
  const DispatchKeySet dense =
      DispatchKeySet(c10::DispatchKey::Dense) | DispatchKeySet(keys.highestBackendKey());
  return keys - c10::autograd_dispatch_keyset_with_ADInplaceOrView -
             c10::autocast_dispatch_keyset ==
         dense;
}

bool has_tangent(const at::Tensor& tensor) {
  return tensor._fw_grad(/*level=*/0).defined();
}

}  // namespace

NormLayout RmsNormRecord::Spec::layout() const {
  NormLayout result{};
  result.dtype = dtype_of(dtype);
  result.rows = rows;
  result.dim = dim;
  result.tensors[kX] = result.results[0] = evenly_spaced(dim);
  result.tensor_types = pack_tensor_type(kX, tensor_type_of(result.dtype));
  result.tensors[kWeight] = result.tensors[kBias] = evenly_spaced(0);
  if (weight_dtype.has_value()) {
    result.tensor_types |= pack_tensor_type(kWeight, tensor_type_of(dtype_of(*weight_dtype)));
  }
  result.result_types = result_types(table_of(Op::rms_norm), result.tensor_types);
  return result;
}

RmsNormRecord::RmsNormRecord(const Spec& spec) : spec_(spec) {
  const auto check_dtype = [](const char* name, at::ScalarType type) {
    TORCH_CHECK_TYPE(is_supported(type), kName, ": ", name,
                     " must be float32, float16 or bfloat16, got ", dtype_name(type));
  };
  check_dtype("dtype", spec.dtype);
  if (spec.weight_dtype.has_value()) {
    check_dtype("weight_dtype", *spec.weight_dtype);
  }
  TORCH_CHECK_VALUE(spec.rows >= 1 && spec.dim >= 1, kName,
                    ": rows and dim must be at least 1, got ", spec.rows, " and ", spec.dim);
  // What a process can address. Nothing that is computed from the sizes overflows below it.
  constexpr int64_t kMaxBytes = int64_t(1) << 47;
  const int64_t most = kMaxBytes / int64_t(c10::elementSize(spec.dtype));
  TORCH_CHECK_VALUE(spec.dim <= most && spec.rows <= most / spec.dim, kName,
                    ": rows and dim must make a tensor of at most 2^47 bytes, got ", spec.rows,
                    " and ", spec.dim);
}

void RmsNormRecord::check_rows(const Argument& argument) const {
  const at::Tensor& t = *argument.tensor;
  TORCH_CHECK_TYPE(t.scalar_type() == spec_.dtype, kName, ": ", argument.name, " must be ",
                   dtype_name(spec_.dtype), " as baked, got ", dtype_name(t.scalar_type()));
  TORCH_CHECK(t.device() == spec_.device, kName, ": ", argument.name, " must be on ", spec_.device,
              " as baked, got ", t.device());
  TORCH_CHECK(needs_no_dispatch(t), kName, ": ", argument.name, " must be a plain tensor, got ",
              t.toString());
  TORCH_CHECK(t.dim() >= 1 && t.size(-1) == spec_.dim && t.numel() == spec_.rows * spec_.dim, kName,
              ": ", argument.name, " must have ", spec_.rows, " rows of ", spec_.dim,
              " elements as baked, got shape ", t.sizes());
  TORCH_CHECK(t.is_contiguous(), kName, ": ", argument.name, " must be contiguous, got strides ",
              t.strides(), " for shape ", t.sizes());
}

void RmsNormRecord::check_weight(const OptionalTensor& weight) const {
  TORCH_CHECK(weight.has_value() == spec_.weight_dtype.has_value(), kName, ": weight must be ",
              spec_.weight_dtype.has_value() ? "a tensor" : "None", " as baked, got ",
              weight.has_value() ? "a tensor" : "None");
  if (!weight.has_value()) {
    return;
  }
  TORCH_CHECK_TYPE(weight->scalar_type() == *spec_.weight_dtype, kName, ": weight must be ",
                   dtype_name(*spec_.weight_dtype), " as baked, got ",
                   dtype_name(weight->scalar_type()));
  TORCH_CHECK(weight->device() == spec_.device, kName, ": weight must be on ", spec_.device,
              " as baked, got ", weight->device());
  TORCH_CHECK(needs_no_dispatch(*weight), kName, ": weight must be a plain tensor, got ",
              weight->toString());
  TORCH_CHECK(weight->dim() == 1 && weight->size(0) == spec_.dim && weight->is_contiguous(), kName,
              ": weight must be contiguous with shape [", spec_.dim, "], got shape ",
              weight->sizes(), " and strides ", weight->strides());
}

void RmsNormRecord::operator()(const at::Tensor& x, const OptionalTensor& weight,
                               const at::Tensor& out) const {
  check_rows({"x", x});
  check_weight(weight);
  check_rows({"out", out});
  check_no_overlap(kName, {"out", out}, {"x", x}, /*allow_same=*/true);
  if (weight.has_value()) {
    check_no_overlap(kName, {"out", out}, {"weight", *weight}, /*allow_same=*/false);
  }
  TORCH_CHECK(!c10::GradMode::is_enabled() || !(x.requires_grad() || out.requires_grad() ||
                                                (weight.has_value() && weight->requires_grad())),
              kName,
              ": inference only, but an argument requires grad; call it under "
              "torch.no_grad()");
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_tangent(x) && !has_tangent(out) && !(weight.has_value() && has_tangent(*weight)), kName,
      ": inference only, it has no forward-mode derivative, but an argument has a tangent");
  check_may_be_written(kName, "out", out);
  TensorPointers tensors{};
  tensors[kX] = &x;
  tensors[kWeight] = weight.has_value() ? &*weight : nullptr;
  run(tensors, out);
  bump_version(out);
}

RecordPointer bake(const at::Tensor& like, at::ScalarType dtype, int64_t rows, int64_t dim,
                   std::optional<at::ScalarType> weight_dtype, std::optional<double> eps,
                   double weight_offset, std::string_view casting_mode) {
  using Bake =
      RecordPointer(const at::Tensor&, at::ScalarType, int64_t, int64_t,
                    std::optional<at::ScalarType>, std::optional<double>, double, std::string_view);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("mlxnorm::_bake_rms_norm", "").typed<Bake>();
  return op.call(like, dtype, rows, dim, weight_dtype, eps, weight_offset, casting_mode);
}

}  // namespace mlxnorm
