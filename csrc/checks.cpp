#include "checks.h"

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <string>
#include <utility>

namespace mlxnorm {
namespace {

std::string dtype_name(const at::Tensor& tensor) {
  return std::string(c10::getDtypeNames(tensor.scalar_type()).first);
}

void check_dtype(const char* op, const Argument& argument, const Argument& x) {
  TORCH_CHECK_TYPE(argument.tensor->scalar_type() == x.tensor->scalar_type(), op, ": ",
                   argument.name, " must be ", dtype_name(*x.tensor), " (as ", x.name, "), got ",
                   dtype_name(*argument.tensor));
}

void check_floating(const char* op, const Argument& argument) {
  TORCH_CHECK_TYPE(is_supported(argument.tensor->scalar_type()), op, ": ", argument.name,
                   " must be float32, float16 or bfloat16, got ", dtype_name(*argument.tensor));
}

void check_device(const char* op, const Argument& argument, const Argument& x) {
  TORCH_CHECK(argument.tensor->device() == x.tensor->device(), op, ": ", argument.name,
              " must be on ", x.tensor->device(), " (as ", x.name, "), got ",
              argument.tensor->device());
}

// Are the sizes equal? A symbolic answer is guarded on.
bool same_sizes(at::SymIntArrayRef a, at::SymIntArrayRef b) {
  if (a.size() != b.size()) {
    return false;
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (!a[i].sym_eq(b[i]).expect_true(__FILE__, __LINE__)) {
      return false;
    }
  }
  return true;
}

// One element, or [1, …, 1, dim]. Never by count: [rows, 1] is a factor for each row, even where
// there are dim rows.
c10::SymBool is_shared_by_rows(at::SymIntArrayRef sizes, const c10::SymInt& dim) {
  c10::SymBool shared = true;
  for (size_t i = 0; i < sizes.size(); ++i) {
    c10::SymBool fits = sizes[i].sym_eq(1);
    if (i + 1 == sizes.size()) {
      fits = fits.sym_or(sizes[i].sym_eq(dim));
    }
    shared = shared.sym_and(fits);
  }
  return shared;
}

// First and one-past-last byte that the elements of a non-empty tensor span in its storage.
std::pair<int64_t, int64_t> byte_span(const at::Tensor& t) {
  int64_t last = t.storage_offset();
  for (int64_t i = 0; i < t.dim(); ++i) {
    last += (t.size(i) - 1) * t.stride(i);
  }
  return {t.storage_offset() * t.element_size(), (last + 1) * t.element_size()};
}

// [..., dim] with dim > 0.
void check_rows(const char* op, const Argument& x) {
  check_floating(op, x);
  TORCH_CHECK(x.tensor->dim() >= 1, op, ": ", x.name,
              " must have at least 1 dimension, got a 0-d tensor");
  TORCH_SYM_CHECK(x.tensor->sym_size(-1).sym_ne(0), op, ": ", x.name,
                  " must have a last dimension of at least 1, got shape ", x.tensor->sym_sizes());
}

// [..., top_k, dim] with both > 0.
void check_experts(const char* op, const Argument& experts) {
  check_rows(op, experts);
  TORCH_CHECK(experts.tensor->dim() >= 2, op, ": ", experts.name,
              " must have at least 2 dimensions, got shape ", experts.tensor->sym_sizes());
  TORCH_SYM_CHECK(experts.tensor->sym_size(-2).sym_ne(0), op, ": ", experts.name,
                  " must have a top_k dimension of at least 1, got shape ",
                  experts.tensor->sym_sizes());
}

// The shape of the rows that `like` has or, if it holds experts, is summed to.
void check_shape_like(const char* op, const Argument& argument, const Argument& like) {
  const auto sizes = argument.tensor->sym_sizes(), expected = like.tensor->sym_sizes();
  if (like.role != Role::experts) {
    TORCH_CHECK(same_sizes(sizes, expected), op, ": ", argument.name, " must have shape ", expected,
                " (as ", like.name, "), got ", sizes);
    return;
  }
  at::SymDimVector summed(expected.begin(), expected.end());
  summed.erase(summed.end() - 2);
  TORCH_CHECK(same_sizes(sizes, summed), op, ": ", argument.name, " must have shape ",
              at::SymIntArrayRef(summed), " (", like.name, " without top_k), got ", sizes);
}

void check_like(const char* op, const Argument& argument, const Argument& like) {
  check_dtype(op, argument, like);
  check_device(op, argument, like);
  check_shape_like(op, argument, like);
}

// [dim]
void check_weight(const char* op, const Argument& weight, const Argument& x) {
  check_floating(op, weight);
  check_device(op, weight, x);
  TORCH_CHECK(weight.tensor->dim() == 1, op, ": ", weight.name,
              " must have 1 dimension, got shape ", weight.tensor->sym_sizes());
  const c10::SymInt dim = x.tensor->sym_size(-1);
  TORCH_SYM_CHECK(weight.tensor->sym_size(0).sym_eq(dim), op, ": ", weight.name, " must have ", dim,
                  " elements (", x.name, ".shape[-1]), got ", weight.tensor->sym_size(0));
}

// One element or [1, …, 1, dim].
void check_scale(const char* op, const Argument& scale, const Argument& x) {
  check_floating(op, scale);
  check_device(op, scale, x);
  const auto sizes = scale.tensor->sym_sizes();
  const c10::SymInt dim = x.tensor->sym_size(-1);
  TORCH_SYM_CHECK(is_shared_by_rows(sizes, dim), op, ": ", scale.name,
                  " must have 1 element or shape [", dim, "] (", x.name,
                  ".shape[-1], leading ones allowed), got shape ", sizes);
}

// That, or x's shape.
void check_elementwise_scale(const char* op, const Argument& scale, const Argument& x) {
  check_floating(op, scale);
  check_device(op, scale, x);
  const auto sizes = scale.tensor->sym_sizes(), expected = x.tensor->sym_sizes();
  c10::SymBool same = sizes.size() == expected.size();
  for (size_t i = 0; i < expected.size() && sizes.size() == expected.size(); ++i) {
    same = same.sym_and(sizes[i].sym_eq(expected[i]));
  }
  const c10::SymInt dim = x.tensor->sym_size(-1);
  TORCH_SYM_CHECK(same.sym_or(is_shared_by_rows(sizes, dim)), op, ": ", scale.name,
                  " must have 1 element or shape [", dim, "] (", x.name,
                  ".shape[-1], leading ones allowed) or ", expected, " (as ", x.name,
                  "), got shape ", sizes);
}

// [..., top_k]
void check_routing_weights(const char* op, const Argument& weights, const Argument& experts) {
  check_floating(op, weights);
  check_device(op, weights, experts);
  const auto expected = experts.tensor->sym_sizes().slice(0, experts.tensor->dim() - 1);
  TORCH_CHECK(same_sizes(weights.tensor->sym_sizes(), expected), op, ": ", weights.name,
              " must have shape ", expected, " (", experts.name, ".shape[:-1]), got ",
              weights.tensor->sym_sizes());
}

}  // namespace

void check_tensor(const char* op, const Argument& argument, const Argument& first) {
  switch (argument.role) {
    case Role::input:
      return &argument == &first ? check_rows(op, argument) : check_like(op, argument, first);
    case Role::experts:
      return check_experts(op, argument);
    case Role::weight:
      return check_weight(op, argument, first);
    case Role::scale:
      return check_scale(op, argument, first);
    case Role::elementwise_scale:
      return check_elementwise_scale(op, argument, first);
    case Role::routing_weights:
      return check_routing_weights(op, argument, first);
  }
}

void check_out(const char* op, const Argument& out, const Argument& like) {
  check_like(op, out, like);
  TORCH_CHECK(out.tensor->is_contiguous(), op, ": ", out.name, " must be contiguous, got strides ",
              out.tensor->sym_strides(), " for shape ", out.tensor->sym_sizes());
}

void check_no_overlap(const char* op, const Argument& out, const Argument& other, bool allow_same) {
  const at::Tensor& a = *out.tensor;
  const at::Tensor& b = *other.tensor;
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
              " must not share memory with ", other.name,
              allow_same ? " unless it is the same contiguous tensor" : "", ", got bytes [",
              a_begin, ", ", a_end, ") and [", b_begin, ", ", b_end, ") of one storage");
}

void check_max_dim(const char* op, const Argument& x, int64_t max_dim) {
  TORCH_CHECK(x.tensor->size(-1) <= max_dim, op, ": ", x.name,
              " must have a last dimension of at most ", max_dim, " on ", x.tensor->device(),
              ", got ", x.tensor->size(-1));
}

void check_max_top_k(const char* op, const Argument& experts, int64_t max_top_k) {
  TORCH_CHECK(experts.tensor->size(-2) <= max_top_k, op, ": ", experts.name,
              " must have a top_k dimension of at most ", max_top_k, " on ",
              experts.tensor->device(), ", got ", experts.tensor->size(-2));
}

CastingMode parse_casting_mode(const char* op, std::string_view casting_mode) {
  if (casting_mode == "gemma") {
    return CastingMode::gemma;
  }
  TORCH_CHECK_VALUE(casting_mode == "llama", op,
                    ": casting_mode must be \"gemma\" or \"llama\", got \"", casting_mode, "\"");
  return CastingMode::llama;
}

Activation parse_activation(const char* op, std::string_view activation) {
  if (activation == "none") {
    return kNoActivation;
  }
  if (activation == "silu") {
    return kSilu;
  }
  if (activation == "gelu_tanh") {
    return kGeluTanh;
  }
  TORCH_CHECK_VALUE(activation == "sigmoid", op,
                    ": activation must be \"none\", \"silu\", \"gelu_tanh\" or \"sigmoid\", got \"",
                    activation, "\"");
  return kSigmoid;
}

}  // namespace mlxnorm
