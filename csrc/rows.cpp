#include "rows.h"

#include <limits>

namespace mlxnorm {
namespace {

RowLayout contiguous_layout(int64_t dim) {
  return {dim, 0, 0, 1, 1};
}

// Folds the leading dimensions that step through memory evenly into one, innermost first.
std::optional<RowLayout> strided_layout(const at::Tensor& x) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  const int64_t last = x.dim() - 1;
  if (sizes[last] != 1 && strides[last] != 1) {
    return std::nullopt;
  }
  int64_t size[3] = {1, 1, 1};
  int64_t stride[3] = {0, 0, 0};
  int folded = -1;
  for (int64_t i = last - 1; i >= 0; --i) {
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

}  // namespace

Rows rows_of(const at::Tensor& x) {
  const int64_t dim = x.size(-1);
  const int64_t count = x.numel() / dim;
  if (x.is_contiguous()) {
    return {c10::MaybeOwned<at::Tensor>::borrowed(x), contiguous_layout(dim), count, dim};
  }
  if (const auto layout = strided_layout(x)) {
    return {c10::MaybeOwned<at::Tensor>::borrowed(x), *layout, count, dim};
  }
  return {c10::MaybeOwned<at::Tensor>::owned(x.contiguous()), contiguous_layout(dim), count, dim};
}

c10::MaybeOwned<at::Tensor> contiguous_or_none(const std::optional<at::Tensor>& tensor) {
  if (!tensor.has_value()) {
    return c10::MaybeOwned<at::Tensor>::owned(at::Tensor());
  }
  return tensor->expect_contiguous();
}

}  // namespace mlxnorm
