#include "rows.h"

#include <limits>
#include <optional>

namespace mlxnorm {
namespace {

RowLayout contiguous_layout(int64_t row_stride) {
  return {row_stride, 0, 0, 1, 1};
}

// Folds the leading dimensions that step through memory evenly into one, innermost first.
std::optional<RowLayout> fold(at::IntArrayRef sizes, at::IntArrayRef strides) {
  int64_t size[3] = {1, 1, 1};
  int64_t stride[3] = {0, 0, 0};
  int folded = -1;
  for (int64_t i = int64_t(sizes.size()) - 1; i >= 0; --i) {
    if (sizes[i] == 1) {
      continue;
    }
    if (folded >= 0 && strides[i] == stride[folded] * size[folded]) {
      size[folded] *= sizes[i];
      continue;
    }
    if (++folded == 3) {
      return std::nullopt;
    }
    size[folded] = sizes[i];
    stride[folded] = strides[i];
  }
  constexpr int64_t kMaxSize = std::numeric_limits<uint32_t>::max();
  if (folded <= 0) {
    return RowLayout{stride[0], 0, 0, 1, 1};
  }
  if (size[0] > kMaxSize || size[1] > kMaxSize) {
    return std::nullopt;
  }
  if (folded == 1) {
    return RowLayout{stride[1], stride[0], 0, uint32_t(size[0]), 1};
  }
  return RowLayout{stride[2], stride[1], stride[0], uint32_t(size[1]), uint32_t(size[0])};
}

// Of a tensor whose last `inner` dimensions belong to the row.
Rows rows_of(const at::Tensor& x, int64_t inner = 1) {
  using Tensor = c10::MaybeOwned<at::Tensor>;
  const int64_t leading = x.dim() - inner;
  if (!x.is_contiguous()) {
    const auto sizes = x.sizes(), strides = x.strides();
    if (sizes.back() == 1 || strides.back() == 1) {
      if (const auto layout = fold(sizes.slice(0, leading), strides.slice(0, leading))) {
        return {Tensor::borrowed(x), *layout};
      }
    }
    return {Tensor::owned(x.contiguous()),
            contiguous_layout(c10::multiply_integers(sizes.slice(leading)))};
  }
  return {Tensor::borrowed(x), contiguous_layout(c10::multiply_integers(x.sizes().slice(leading)))};
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

RowsOfCall::RowsOfCall(const NormCall& call)
    : count(call.like().numel() / call.like().size(-1)),
      dim(call.like().size(-1)),
      dtype(dtype_of(call.like().scalar_type())) {
  for (int i = 0; i < kMaxInputs && call.input(i); ++i) {
    inputs[i] = rows_of(*call.input(i).tensor, i == 0 && call.sums_experts() ? 2 : 1);
  }
  if (call.sums_experts()) {
    top_k = inputs[0].tensor->size(-2);
    expert_stride = inputs[0].tensor->stride(-2);
  }
  for (int i = 0; i < kOperands; ++i) {
    if (!call.operand(i)) {
      continue;
    }
    const at::Tensor& operand = *call.operand(i).tensor;
    operand_types |= pack_operand_type(i, operand_type_of(dtype_of(operand.scalar_type())));
    if (i == kRoutingWeights || (i == kScale && operand.numel() > dim)) {
      operands[i] = rows_of(operand);
    } else {
      operands[i].tensor = operand.expect_contiguous();
      scale_is_scalar = scale_is_scalar || (i == kScale && operand.numel() == 1);
    }
  }
}

}  // namespace mlxnorm
