// The CPU kernels as the rest of the extension sees them. Each instruction set has its own object
// (csrc/cpu/isa/ compiled with that set's flags), so only plain data and function pointers cross
// this boundary: an inline function shared by two objects could be linked from the wrong one.
#pragma once

#include <cstdint>

#include "../types.h"

namespace mlxnorm::cpu {

struct NormArguments {
  const NormLayout& layout;  // not copied for every call
  NormOptions options;
  const void* tensors[kMaxTensors] = {};  // null where there is none
  void* results[kMaxResults] = {};
  bool streaming = false;  // write past the caches; every row of the results is 64-byte aligned
};

// Some runs of a long row, one of several passes over it: each sum of the op, then its results.
// Runs are what a row is summed in anyway, so it may be cut between any two of them.
struct RowPart {
  int64_t row;
  int pass;
  int64_t begin, end;  // runs; the last one of a row is what is left of it, which may be nothing
  double sum;          // of the row, as the pass before found it
  float* sums;         // of each run of the row, written by passes that sum
  float* scratch;      // of the row, as for a kernel
};

struct PartKernel {
  void (*run)(const NormArguments& arguments, const RowPart& part) = nullptr;
  int64_t run_length = 0;
  int sums = 0;
};

struct NormKernel {
  // Rows [begin, end), or strips of lines. `scratch` holds scratch_rows times the scratch_size of
  // a row, or of a strip's width, in floats.
  void (*run)(const NormArguments& arguments, int64_t begin, int64_t end, float* scratch);
  int scratch_rows;
  PartKernel of_part = {};  // none where an op's rows are not shared by threads
};

constexpr int64_t kLargestBlock = 32;

// A row of whole blocks.
constexpr int64_t scratch_size(int64_t dim) {
  return (dim + kLargestBlock - 1) / kLargestBlock * kLargestBlock;
}

// What of a line is normalized at once, so that it is still in a cache when its sums are known.
struct ColumnStrips {
  static constexpr int64_t kBytes = 384 << 10, kMost = 2048;
  // Channels that lie whole pages apart share few sets of a cache, which do not keep them all: more
  // of each then hides what fetching it again takes.
  static constexpr int64_t kPage = 4096, kLeastBytesOfPages = 1024;

  explicit constexpr ColumnStrips(const NormLayout& layout) : width(kMost) {
    const int64_t size = size_of(layout.dtype), fit = kBytes / (layout.dim * size);
    if (fit < kMost) {
      const bool pages = layout.steps[0] * size % kPage == 0;
      const int64_t least = pages ? kLeastBytesOfPages / size : 2 * kLargestBlock;
      width = fit < least ? least : fit / kLargestBlock * kLargestBlock;
    }
    of_a_line = (layout.line + width - 1) / width;
  }

  int64_t width, of_a_line;
};

#define MLXNORM_DECLARE_KERNEL(op) NormKernel op##_kernel(const NormArguments& arguments);

namespace DEFAULT {
MLXNORM_FOR_EACH_OP(MLXNORM_DECLARE_KERNEL)
}
#ifdef __x86_64__
namespace AVX2 {
MLXNORM_FOR_EACH_OP(MLXNORM_DECLARE_KERNEL)
}
namespace AVX512 {
MLXNORM_FOR_EACH_OP(MLXNORM_DECLARE_KERNEL)
}
#endif
#undef MLXNORM_DECLARE_KERNEL

}  // namespace mlxnorm::cpu
