// What sizes and strides say of memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <optional>

#include "types.h"

namespace mlxnorm {

// What rows are cut into: groups of so many elements (0: one, the whole row), one after another.
struct Groups {
  Groups(int64_t dim, int64_t group_size)
      : count(group_size == 0 ? 1 : dim / group_size), size(dim / count) {}

  int64_t count, size;
};

// Leading dimensions that step through memory evenly are one, groups being the innermost of them.
// None if that leaves more than three.
std::optional<RowLayout> folded(at::IntArrayRef sizes, at::IntArrayRef strides, Groups groups);

// Do sizes and strides give the same rows at the same steps, however many leading dimensions count
// them? The last `kept` dimensions are a row's.
bool lie_alike(at::IntArrayRef sizes, at::IntArrayRef strides, at::IntArrayRef other_sizes,
               at::IntArrayRef other_strides, int64_t kept);

// Are the last two dimensions, of which the last has stride 1, neighbours in memory?
inline bool heads_are_one_row(const at::Tensor& tensor) {
  return tensor.size(-2) == 1 || tensor.stride(-2) == tensor.size(-1);
}

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
