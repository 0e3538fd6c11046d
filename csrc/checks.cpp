#include "checks.h"

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <utility>

namespace mlxnorm {
namespace {

bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

std::string dtype_name(at::ScalarType type) {
  return std::string(c10::getDtypeNames(type).first);
}

// First and one-past-last byte that the elements of a non-empty tensor span in its storage.
std::pair<int64_t, int64_t> byte_span(const at::Tensor& t) {
  int64_t last = t.storage_offset();
  for (int64_t i = 0; i < t.dim(); ++i) {
    last += (t.size(i) - 1) * t.stride(i);
  }
  return {t.storage_offset() * t.element_size(), (last + 1) * t.element_size()};
}

}  // namespace

void check_activation(const char* op, const Argument& x) {
  TORCH_CHECK_TYPE(is_supported(x.tensor.scalar_type()), op, ": ", x.name,
                   " must be float32, float16 or bfloat16, got ",
                   dtype_name(x.tensor.scalar_type()));
  TORCH_CHECK(x.tensor.dim() >= 1, op, ": ", x.name,
              " must have at least 1 dimension, got a 0-d tensor");
  TORCH_SYM_CHECK(x.tensor.sym_size(-1).sym_ne(0), op, ": ", x.name,
                  " must have a last dimension of at least 1, got shape ", x.tensor.sym_sizes());
}

void check_max_dim(const char* op, const Argument& x, int64_t max_dim) {
  TORCH_CHECK(x.tensor.size(-1) <= max_dim, op, ": ", x.name,
              " must have a last dimension of at most ", max_dim, " on ", x.tensor.device(),
              ", got ", x.tensor.size(-1));
}

void check_weight(const char* op, const char* name, const std::optional<at::Tensor>& weight,
                  const Argument& x) {
  if (!weight.has_value()) {
    return;
  }
  TORCH_CHECK_TYPE(
      weight->scalar_type() == x.tensor.scalar_type() || weight->scalar_type() == at::kFloat, op,
      ": ", name, " must be ", dtype_name(x.tensor.scalar_type()), " (as ", x.name,
      ") or float32, got ", dtype_name(weight->scalar_type()));
  TORCH_CHECK(weight->device() == x.tensor.device(), op, ": ", name, " must be on ",
              x.tensor.device(), " (as ", x.name, "), got ", weight->device());
  TORCH_CHECK(weight->dim() == 1, op, ": ", name, " must have 1 dimension, got shape ",
              weight->sym_sizes());
  TORCH_SYM_CHECK(weight->sym_size(0).sym_eq(x.tensor.sym_size(-1)), op, ": ", name, " must have ",
                  x.tensor.sym_size(-1), " elements (", x.name, ".shape[-1]), got ",
                  weight->sym_size(0));
}

void check_out(const char* op, const Argument& out, const Argument& x) {
  TORCH_CHECK_TYPE(out.tensor.scalar_type() == x.tensor.scalar_type(), op, ": ", out.name,
                   " must be ", dtype_name(x.tensor.scalar_type()), " (as ", x.name, "), got ",
                   dtype_name(out.tensor.scalar_type()));
  TORCH_CHECK(out.tensor.device() == x.tensor.device(), op, ": ", out.name, " must be on ",
              x.tensor.device(), " (as ", x.name, "), got ", out.tensor.device());
  bool same_rank = out.tensor.dim() == x.tensor.dim();
  for (int64_t i = 0; i < x.tensor.dim(); ++i) {
    TORCH_CHECK(
        same_rank &&
            out.tensor.sym_size(i).sym_eq(x.tensor.sym_size(i)).expect_true(__FILE__, __LINE__),
        op, ": ", out.name, " must have shape ", x.tensor.sym_sizes(), " (as ", x.name, "), got ",
        out.tensor.sym_sizes());
  }
  TORCH_CHECK(out.tensor.is_contiguous(), op, ": ", out.name, " must be contiguous, got strides ",
              out.tensor.sym_strides(), " for shape ", out.tensor.sym_sizes());
}

void check_no_overlap(const char* op, const Argument& out, const Argument& input, bool allow_same) {
  const at::Tensor& a = out.tensor;
  const at::Tensor& b = input.tensor;
  if (!a.has_storage() || !b.has_storage() || !a.storage().is_alias_of(b.storage()) ||
      a.unsafeGetTensorImpl()->has_symbolic_sizes_strides() ||
      b.unsafeGetTensorImpl()->has_symbolic_sizes_strides() || a.numel() == 0 || b.numel() == 0) {
    return;
  }
  if (allow_same && a.storage_offset() == b.storage_offset() && b.is_contiguous()) {
    return;
  }
  const auto [a_begin, a_end] = byte_span(a);
  const auto [b_begin, b_end] = byte_span(b);
  TORCH_CHECK(a_end <= b_begin || b_end <= a_begin, op, ": ", out.name,
              " must not share memory with ", input.name,
              allow_same ? " unless it is the same contiguous tensor" : "", ", got bytes [",
              a_begin, ", ", a_end, ") and [", b_begin, ", ", b_end, ") of one storage");
}

CastingMode parse_casting_mode(const char* op, std::string_view casting_mode) {
  if (casting_mode == "gemma") {
    return CastingMode::gemma;
  }
  TORCH_CHECK_VALUE(casting_mode == "llama", op,
                    ": casting_mode must be \"gemma\" or \"llama\", got \"", casting_mode, "\"");
  return CastingMode::llama;
}

DType dtype_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kHalf:
      return DType::float16;
    case at::kBFloat16:
      return DType::bfloat16;
    default:
      return DType::float32;
  }
}

WeightType weight_type(const at::Tensor& x, const std::optional<at::Tensor>& weight) {
  if (!weight.has_value()) {
    return WeightType::none;
  }
  return weight->scalar_type() == x.scalar_type() ? WeightType::same_as_x : WeightType::float32;
}

}  // namespace mlxnorm
