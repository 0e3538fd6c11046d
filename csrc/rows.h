// How an activation [..., dim] is seen as rows.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/MaybeOwned.h>

#include <optional>

#include "../shaders/params.h"

namespace mlxnorm {

struct Rows {
  c10::MaybeOwned<at::Tensor> tensor;  // the activation, or a contiguous copy of it
  RowLayout layout;
  int64_t count;
  int64_t dim;
};

// x's rows where they are when the last dimension has stride 1 and the others fold into at most
// three; of a contiguous copy otherwise. The Rows borrows x.
Rows rows_of(const at::Tensor& x);

// The optional tensor itself when contiguous (or nothing), a contiguous copy otherwise.
c10::MaybeOwned<at::Tensor> contiguous_or_none(const std::optional<at::Tensor>& tensor);

}  // namespace mlxnorm
