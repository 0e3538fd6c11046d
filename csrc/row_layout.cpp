#include "row_layout.h"

#include <algorithm>
#include <optional>

namespace mlxnorm {
namespace {

// Strides of a tensor that is expanded to these leading dimensions.
c10::DimVector expanded_strides(const at::Tensor& tensor, int64_t inner, at::IntArrayRef leading) {
  c10::DimVector strides(leading.size(), 0);
  const int64_t missing = int64_t(leading.size()) - (tensor.dim() - inner);
  for (int64_t i = std::max<int64_t>(missing, 0); i < int64_t(leading.size()); ++i) {
    if (tensor.size(i - missing) != 1) {
      strides[i] = tensor.stride(i - missing);
    }
  }
  return strides;
}

// None where rows cannot be described so, or have gaps between their elements.
std::optional<RowLayout> layout_of(const at::Tensor& tensor, int64_t inner, at::IntArrayRef leading,
                                   Groups groups) {
  const int64_t own = tensor.dim() - inner;
  if (tensor.is_contiguous()) {
    if (own == 0 && groups.count == 1) {
      return evenly_spaced(0);
    }
    if (own == int64_t(leading.size()) && tensor.sizes().slice(0, own) == leading) {
      return evenly_spaced(c10::multiply_integers(tensor.sizes().slice(own)) / groups.count);
    }
  }
  if (tensor.size(-1) != 1 && tensor.stride(-1) != 1) {
    return std::nullopt;
  }
  return folded(leading, expanded_strides(tensor, inner, leading), groups);
}

}  // namespace

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kHalf:
      return DType::float16;
    case at::kBFloat16:
      return DType::bfloat16;
    default:
      return DType::float32;
  }
}

void select_tensors(const Segment& segment, const NormLayout& layout, const TensorPointers& all,
                    TensorPointers& selected) {
  for (size_t i = 0; i < segment.count; ++i) {
    if (tensor_type(layout.tensor_types, int(i)) != kAbsent) {
      selected[i] = all[segment.tensors[i]];
    }
  }
}

LaidOutCall::LaidOutCall(const NormCall& call, const at::Tensor* const* outs, size_t s) {
  const Segment& segment = call.op().segments[s];
  const at::Tensor& like = call.like(segment.first_result);
  const int64_t inner = call.across_heads() ? 2 : 1;
  const auto leading = like.sizes().slice(0, like.dim() - inner);
  layout.dtype = dtype_of(call.first().tensor->scalar_type());
  const Groups groups(like.size(-1), call.group_size());
  layout.heads = call.across_heads() ? like.size(-2) : 1;
  layout.rows = c10::multiply_integers(leading) * groups.count;
  layout.dim = groups.size * layout.heads;
  for (size_t t = 0; t < segment.count; ++t) {
    layout.tensors[t] = evenly_spaced(0);
    const Argument& tensor = call.tensor(segment, t);
    if (tensor && tensor.role == Role::angles) {
      layout.rotated = tensor.tensor->size(-1) * (call.has_full_tables() ? 1 : 2);
    }
    if (tensor && tensor.tensor->numel() != 0) {  // tables may have no angles
      lay_out(t, tensor, inner, leading, groups);
    }
  }
  for (size_t r = 0; r < segment.results; ++r) {
    const at::Tensor& out = *outs[segment.first_result + r];
    layout.results[r] = *layout_of(out, inner, leading, groups);
    layout.result_types |= pack_tensor_type(r, tensor_type_of(dtype_of(out.scalar_type())));
  }
}

void LaidOutCall::lay_out(size_t t, const Argument& argument, int64_t inner,
                          at::IntArrayRef leading, Groups groups) {
  const at::Tensor& tensor = *argument.tensor;
  layout.tensor_types |= pack_tensor_type(t, tensor_type_of(dtype_of(tensor.scalar_type())));
  tensors[t] = &tensor;
  if (may_be_scalar(argument.role) && tensor.numel() == 1) {
    layout.scalars |= 1u << t;
    return;
  }
  const bool across_heads = inner == 2;
  if (argument.role == Role::angles) {
    inner = std::min(inner, tensor.dim());
  } else if (argument.role != Role::input) {
    inner = row_dimensions(argument.role);
  }
  std::optional<RowLayout> rows;
  if (!across_heads || argument.role != Role::input || heads_are_one_row(tensor)) {
    rows = layout_of(tensor, inner, leading, groups);
  }
  if (!rows.has_value()) {
    copied_ = true;
    copies_[t] = tensor.contiguous();
    tensors[t] = &copies_[t];
    rows = layout_of(copies_[t], inner, leading, groups);
  }
  if (!rows.has_value()) {
    // Broadcast along dimensions that alternate with others, more than a layout has.
    c10::DimVector sizes(leading.begin(), leading.end());
    sizes.append(tensor.sizes().end() - inner, tensor.sizes().end());
    copies_[t] = tensor.expand(sizes).contiguous();
    rows = layout_of(copies_[t], inner, leading, groups);
  }
  TORCH_INTERNAL_ASSERT(rows.has_value());
  layout.tensors[t] = *rows;
  if (argument.role == Role::experts) {
    layout.top_k = tensors[t]->size(-2);
    layout.steps[t] = tensors[t]->stride(-2);
  } else if (across_heads) {
    const bool one_for_all = argument.role == Role::angles && (inner == 1 || tensor.size(-2) == 1);
    layout.steps[t] = one_for_all                     ? 0
                      : argument.role == Role::angles ? tensors[t]->stride(-2)
                                                      : layout.dim / layout.heads;
  }
}

}  // namespace mlxnorm
