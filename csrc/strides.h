// What sizes and strides say of memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <optional>

#include "types.h"

namespace mlxnorm {

// Leading dimensions that step through memory evenly are one. None if that leaves more than three.
std::optional<RowLayout> folded(at::IntArrayRef sizes, at::IntArrayRef strides);

// The bytes of a storage that a tensor with elements has: a block again and again.
struct Footprint {
  explicit Footprint(const at::Tensor& tensor);

  int64_t begin, end;  // the first byte, and one past the last
  int64_t block;
  c10::SmallVector<int64_t, 4> steps;  // from block to block
  bool overlaps_itself;                // perhaps: dimensions may also interleave
};

// Have they no byte in common? Perhaps not, where it is false.
bool are_apart(const Footprint& a, const Footprint& b);

}  // namespace mlxnorm
