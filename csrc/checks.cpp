#include "checks.h"

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>

#include "strides.h"

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

bool is_symbolic(const at::Tensor& t) {
  return t.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
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

// Whole rows, of which some or all of the leading dimensions may be one for all.
c10::SymBool broadcasts_to(at::SymIntArrayRef expected, at::SymIntArrayRef sizes) {
  c10::SymBool fits = !sizes.empty();
  for (size_t i = 1; i <= sizes.size(); ++i) {  // from the right
    const c10::SymInt& size = sizes[sizes.size() - i];
    c10::SymBool fits_here = false;
    if (i <= expected.size()) {
      fits_here = size.sym_eq(expected[expected.size() - i]);
    }
    fits = fits.sym_and(i == 1 ? fits_here : fits_here.sym_or(size.sym_eq(1)));
  }
  return fits;
}

c10::SymBool has_one_element(at::SymIntArrayRef sizes) {
  c10::SymBool one = true;
  for (const c10::SymInt& size : sizes) {
    one = one.sym_and(size.sym_eq(1));
  }
  return one;
}

// Do two tensors of one shape lie alike?
bool same_steps(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) {
    return false;
  }
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != 1 && a.stride(i) != b.stride(i)) {
      return false;
    }
  }
  return true;
}

// [..., dim] or, across heads, [..., heads, dim] with dim > 0.
void check_rows(const char* op, const Argument& x, bool across_heads = false) {
  check_floating(op, x);
  TORCH_CHECK(x.tensor->dim() >= 1, op, ": ", x.name,
              " must have at least 1 dimension, got a 0-d tensor");
  if (across_heads) {
    TORCH_CHECK(x.tensor->dim() >= 2, op, ": ", x.name,
                " must have at least 2 dimensions, heads and theirs (across_heads), got shape ",
                x.tensor->sym_sizes());
    TORCH_SYM_CHECK(x.tensor->sym_size(-2).sym_ne(0), op, ": ", x.name,
                    " must have at least 1 head (across_heads), got shape ", x.tensor->sym_sizes());
  }
  TORCH_SYM_CHECK(x.tensor->sym_size(-1).sym_ne(0), op, ": ", x.name,
                  " must have a last dimension of at least 1, got shape ", x.tensor->sym_sizes());
}

// [N, C, ...] with C > 0.
void check_channels(const char* op, const Argument& x) {
  check_floating(op, x);
  const auto sizes = x.tensor->sym_sizes();
  TORCH_CHECK(sizes.size() >= 2, op, ": ", x.name,
              " must have at least 2 dimensions, [N, C, ...], got shape ", sizes);
  TORCH_SYM_CHECK(sizes[1].sym_ne(0), op, ": ", x.name,
                  " must have a dimension 1 of at least 1, got shape ", sizes);
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

// Of the rows that `like` has or, if it holds experts, is summed to; with heads side by side where
// they are one row.
at::SymDimVector shape_of_rows(const Argument& like, bool across_heads = false) {
  const auto sizes = like.tensor->sym_sizes();
  at::SymDimVector rows(sizes.begin(), sizes.end());
  if (like.role == Role::experts) {
    rows.erase(rows.end() - 2);
  }
  if (across_heads) {
    const c10::SymInt dim = rows.back();
    rows.pop_back();
    rows.back() *= dim;
  }
  return rows;
}

std::string named(const Argument& like) {
  const std::string name = like.name;
  return like.role == Role::experts ? name + " without top_k" : "as " + name;
}

void check_shape_like(const char* op, const Argument& argument, const Argument& like) {
  const auto sizes = argument.tensor->sym_sizes();
  if (like.role != Role::experts && same_sizes(sizes, like.tensor->sym_sizes())) {
    return;  // the usual case needs no list
  }
  const at::SymDimVector expected = shape_of_rows(like);
  TORCH_CHECK(same_sizes(sizes, expected), op, ": ", argument.name, " must have shape ",
              at::SymIntArrayRef(expected), " (", named(like), "), got ", sizes);
}

void check_like(const char* op, const Argument& argument, const Argument& like) {
  check_dtype(op, argument, like);
  check_device(op, argument, like);
  check_shape_like(op, argument, like);
}

// As x, or float32 beside 16 bits.
void check_residual(const char* op, const Argument& residual, const Argument& x) {
  const auto type = residual.tensor->scalar_type(), narrow = x.tensor->scalar_type();
  TORCH_CHECK_TYPE(type == narrow || type == at::kFloat, op, ": ", residual.name, " must be ",
                   dtype_name(*x.tensor), " (as ", x.name, ")",
                   narrow == at::kFloat ? "" : " or float32", ", got ",
                   dtype_name(*residual.tensor));
  check_device(op, residual, x);
  check_shape_like(op, residual, x);
}

// [C], or what broadcasts to [N, C, 1, ...] and has C elements or N times as many.
void check_per_channel(const char* op, const Argument& operand, const Argument& x) {
  const auto sizes = operand.tensor->sym_sizes(), of_x = x.tensor->sym_sizes();
  const int64_t missing = int64_t(of_x.size()) - int64_t(sizes.size());
  c10::SymBool fits = missing == 0 || missing == 1;
  if (sizes.size() == 1) {
    fits = sizes[0].sym_eq(of_x[1]);
  } else if (missing == 0 || missing == 1) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      const int64_t dim = int64_t(i) + missing;
      c10::SymBool fits_here = dim == 1 ? sizes[i].sym_eq(of_x[1]) : sizes[i].sym_eq(1);
      fits = fits.sym_and(dim == 0 ? fits_here.sym_or(sizes[i].sym_eq(of_x[0])) : fits_here);
    }
  }
  at::SymDimVector expected(of_x.begin(), of_x.end());
  std::fill(expected.begin() + 2, expected.end(), 1);
  TORCH_SYM_CHECK(fits, op, ": ", operand.name, " must have shape [", of_x[1],
                  "], or an element for each channel in a shape that broadcasts to ",
                  at::SymIntArrayRef(expected), " (as ", x.name, "), got shape ", sizes);
}

// [..., dim] that broadcasts to the rows of x or, where it may be a scalar, one element.
void check_operand(const char* op, const Argument& operand, const Argument& x, bool across_heads) {
  check_floating(op, operand);
  check_device(op, operand, x);
  if (operand.role == Role::per_channel) {
    return check_per_channel(op, operand, x);
  }
  if (!across_heads && operand.tensor->dim() == 1 && !is_symbolic(*operand.tensor) &&
      !is_symbolic(*x.tensor) && operand.tensor->size(0) == x.tensor->size(-1)) {
    return;  // the usual case needs no list
  }
  const at::SymDimVector expected = shape_of_rows(x, across_heads);
  const auto sizes = operand.tensor->sym_sizes();
  const bool scalar = may_be_scalar(operand.role);
  c10::SymBool fits = broadcasts_to(expected, sizes);
  if (scalar) {
    fits = fits.sym_or(has_one_element(sizes));
  }
  TORCH_SYM_CHECK(fits, op, ": ", operand.name, " must have ", scalar ? "1 element, or " : "",
                  "a last dimension of ", expected.back(), " and a shape that broadcasts to ",
                  at::SymIntArrayRef(expected), " (", named(x),
                  across_heads ? ", its heads one row), got shape " : "), got shape ", sizes);
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

void check_tensor(const char* op, const Argument& argument, const Argument& first,
                  bool across_heads) {
  switch (argument.role) {
    case Role::input:
      return &argument == &first ? check_rows(op, argument, across_heads)
                                 : check_like(op, argument, first);
    case Role::residual:
      return check_residual(op, argument, first);
    case Role::experts:
      return check_experts(op, argument);
    case Role::weight:
    case Role::scale:
    case Role::bias:
    case Role::per_channel:
      return check_operand(op, argument, first, across_heads);
    case Role::channels:
      return check_channels(op, argument);
    case Role::routing_weights:
      return check_routing_weights(op, argument, first);
    case Role::angles:
      check_floating(op, argument);
      return check_device(op, argument, first);  // their shape depends on an option: check_angles
  }
}

void check_beside(const char* op, const Argument& x, const Argument& first) {
  check_dtype(op, x, first);
  check_device(op, x, first);
  const auto sizes = x.tensor->sym_sizes(), expected = first.tensor->sym_sizes();
  const auto differs = [&](size_t i) {
    return !sizes[i].sym_eq(expected[i]).guard_bool(__FILE__, __LINE__);
  };
  bool fits = sizes.size() == expected.size() && !differs(sizes.size() - 1);
  for (size_t i = 0, different = 0; fits && i + 1 < sizes.size(); ++i) {
    different += differs(i);
    fits = different <= 1;
  }
  TORCH_CHECK(fits, op, ": ", x.name, " must have shape ", expected, " (as ", first.name,
              ") but for one dimension before the last, got ", sizes);
}

bool check_angles(const char* op, const Argument& angles, const Argument& like, const Argument& x,
                  bool full) {
  const auto sizes = angles.tensor->sym_sizes(), of_x = x.tensor->sym_sizes();
  TORCH_CHECK(!sizes.empty(), op, ": ", angles.name,
              " must have at least 1 dimension, got a 0-d tensor");
  const c10::SymInt& count = sizes.back();
  full = full || (count * 2).sym_gt(of_x.back()).guard_bool(__FILE__, __LINE__);
  at::SymDimVector expected(of_x.begin(), of_x.end());
  expected.back() = count;
  c10::SymBool fits = broadcasts_to(expected, sizes);
  if (full) {
    fits = fits.sym_and(count.sym_le(of_x.back())).sym_and((count % 2).sym_eq(0));
  }
  TORCH_SYM_CHECK(
      fits, op, ": ", angles.name, " must have ",
      full ? "an even last dimension of at most " : "a last dimension of at most half of ",
      of_x.back(), " and leading dimensions that broadcast to those of ", of_x, " (as ", x.name,
      "), got shape ", sizes);
  TORCH_SYM_CHECK(count.sym_eq(like.tensor->sym_size(-1)), op, ": ", angles.name,
                  " must have a last dimension of ", like.tensor->sym_size(-1), " (as ", like.name,
                  "), got shape ", sizes);
  return full;
}

void check_out(const char* op, const Argument& out, const Argument& like, int64_t group_size,
               bool across_heads) {
  check_like(op, out, like);
  const at::Tensor& t = *out.tensor;
  if (!is_symbolic(t) && t.is_contiguous()) {
    return;
  }
  const auto sizes = t.sym_sizes(), strides = t.sym_strides();
  const bool of_rows = like.role != Role::channels;  // others may lie in any way
  if (of_rows) {
    TORCH_SYM_CHECK(strides.back().sym_eq(1).sym_or(sizes.back().sym_eq(1)), op, ": ", out.name,
                    " must have a last dimension of stride 1, got strides ", strides, " for shape ",
                    sizes);
  }
  if (is_symbolic(t) || t.numel() == 0) {
    return;
  }
  TORCH_CHECK(!Footprint(t).overlaps_itself, op, ": ", out.name,
              " must have an address for each element, got strides ", strides, " for shape ",
              sizes);
  if (!of_rows) {
    return;
  }
  TORCH_CHECK(!across_heads || heads_are_one_row(t), op, ": ", out.name,
              " must have heads one after another (across_heads), got strides ", strides,
              " for shape ", sizes);
  const int64_t leading = t.dim() - (across_heads ? 2 : 1);
  const Groups groups(t.size(-1), group_size);
  TORCH_CHECK(
      folded(t.sizes().slice(0, leading), t.strides().slice(0, leading), groups).has_value(), op,
      ": ", out.name, " must have leading dimensions that fold into at most three",
      groups.count > 1 ? ", one of them that of its groups" : "", ", got strides ", strides,
      " for shape ", sizes);
}

void check_group_size(const char* op, int64_t group_size, const Argument& x) {
  if (group_size == 0) {
    return;
  }
  const c10::SymInt dim = x.tensor->sym_size(-1);
  TORCH_SYM_CHECK(group_size > 0 ? (dim % group_size).sym_eq(0) : c10::SymBool(false), op,
                  ": group_size must be 0, or divide the last dimension of ", x.name, ", ", dim,
                  ", got ", group_size);
}

void check_no_overlap(const char* op, const Argument& out, const Argument& other, bool allow_same) {
  const at::Tensor& a = *out.tensor;
  const at::Tensor& b = *other.tensor;
  if (!a.has_storage() || !b.has_storage() || !a.storage().is_alias_of(b.storage()) ||
      is_symbolic(a) || is_symbolic(b) || a.numel() == 0 || b.numel() == 0) {
    return;
  }
  if (allow_same && a.scalar_type() == b.scalar_type() &&
      a.storage_offset() == b.storage_offset() && same_steps(a, b)) {
    return;
  }
  const Footprint ours(a), theirs(b);
  TORCH_CHECK(are_apart(ours, theirs), op, ": ", out.name, " must not share memory with ",
              other.name, allow_same ? " unless it is the same tensor with the same strides" : "",
              ", got bytes [", ours.begin, ", ", ours.end, ") and [", theirs.begin, ", ",
              theirs.end, ") of one storage");
}

void check_max_dim(const char* op, const Argument& x, bool across_heads, int64_t max_dim,
                   c10::Device device) {
  const bool of_channels = x.role == Role::channels;
  const int64_t dim =
      x.tensor->size(of_channels ? 1 : -1) * (across_heads ? x.tensor->size(-2) : 1);
  TORCH_CHECK(dim <= max_dim, op, ": ", x.name,
              across_heads  ? " must have heads of together at most "
              : of_channels ? " must have a dimension 1 of at most "
                            : " must have a last dimension of at most ",
              max_dim, " on ", device, ", got ", dim);
}

void check_max_top_k(const char* op, const Argument& experts, int64_t max_top_k,
                     c10::Device device) {
  TORCH_CHECK(experts.tensor->size(-2) <= max_top_k, op, ": ", experts.name,
              " must have a top_k dimension of at most ", max_top_k, " on ", device, ", got ",
              experts.tensor->size(-2));
}

uint32_t parse_choice(const char* op, Choice which, std::string_view value) {
  const auto values = kChoiceSpecs[which].values;
  const auto found = std::find(values.begin(), values.end(), value);
  if (found == values.end()) {
    std::string names;
    for (size_t i = 0; i < values.size(); ++i) {
      names += i == 0 ? "\"" : i + 1 == values.size() ? "\" or \"" : "\", \"";
      names += values[i];
    }
    TORCH_CHECK_VALUE(false, op, ": ", kChoiceSpecs[which].name, " must be ", names, "\", got \"",
                      value, "\"");
  }
  return uint32_t(found - values.begin());
}

}  // namespace mlxnorm
