// How the rows of a CPU op are shared out and written.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "../types.h"

namespace mlxnorm::cpu {

// PyTorch's own grain: elements that are worth a thread.
constexpr int64_t kGrainSize = 32768;

// Calls body(begin, end) over PyTorch's threads. A row, or a run of one (split.h), is never split,
// so the number of threads does not change a bit of the result. Must be compiled with OpenMP or it
// runs serially.
template <typename Body>
void parallel_rows(int64_t rows, int64_t dim, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrainSize / dim);
  if (rows <= grain) {
    body(0, rows);
  } else {
    at::parallel_for(0, rows, grain, body);
  }
}

// Stores past the caches pay when the results cannot stay in them anyway, and need aligned rows.
// Not in memory that was just mapped: the kernel zeroes each page, in the caches, when it is first
// written.
bool worth_streaming(const NormLayout& layout, const void* const* results, size_t result_count);

}  // namespace mlxnorm::cpu
