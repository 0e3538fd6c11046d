// Which Metal kernel runs, with how many threads. Plain C++, so that it can be tested without a
// GPU. Bits depend on one choice here, whether a row is held in registers, and that follows from
// dim and dtype alone: a row gives the same bits whatever the number of rows, their strides and
// alignment. The rest is speed; docs/performance.md has the measurements.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "../../shaders/abi.h"
#include "../ops/ops.h"

namespace mlxnorm::mps {

enum class KernelKind : uint32_t {
  simd,  // several rows per threadgroup, lanes_per_row threads each
  row,   // one row per threadgroup, held in registers
  loop,  // one row per threadgroup, read again for every sum and the results
  // Of channels that are not neighbours in memory (shaders/column_kernels.h):
  columns,       // held in registers
  long_columns,  // read again for the results
};
constexpr int kKernelKinds = 5;

constexpr bool is_of_columns(KernelKind kernel) {
  return kernel == KernelKind::columns || kernel == KernelKind::long_columns;
}

// How words are moved: at once, or element by element. TORCH_MLXNORM_ACCESS, for A/B runs and
// debugging.
enum class Access { automatic, scalar, vector };

// `value` is the environment variable's, or null. Throws std::invalid_argument when unknown.
Access parse_access(const char* value);

// Of a row that is held in registers.
constexpr uint32_t kMaxWordsPerThread = 4;

// What is loaded before the first sum.
enum class Prefetch : uint32_t { nothing, activations, everything };
constexpr int kPrefetches = 3;

struct Plan {
  KernelKind kernel;
  uint32_t words_per_thread;  // 0 for loop; of columns: 8 channels each, 0 for long ones
  uint32_t lanes_per_row;     // 32 unless simd; of columns: along a line
  uint32_t threads;           // per threadgroup
  uint32_t rows_per_threadgroup;
  bool vector;  // 16-byte access instead of element by element
  Prefetch prefetch;
  uint32_t threads_per_column = 1;
};

// So few rows leave cores of a GPU idle, and are planned otherwise. Retune on a Mac. Tests lower
// it, to see how many rows are planned for a small tensor.
extern int64_t few_rows;
// Of columns, whose threads have a word each of several channels.
inline int64_t few_words_of_lines() {
  return 8 * kSimdWidth * few_rows;
}

// Shaders count the elements of a row in 32 bits.
constexpr int64_t kMaxDim = int64_t(1) << 31;

// What shaders multiply a sum by, rounded once: a dim above 2^24 may not be a float itself.
constexpr float inverse_of(int64_t dim) {
  return float(1.0 / double(dim));
}

// What there is to plan.
struct Rows {
  const OpTable& op;
  DType dtype;
  int64_t rows, dim;
  uint32_t tensors;  // a bit for each that is read by words, but for experts
  uint32_t choices;  // see choice_in
  bool aligned;      // every row that the kernel touches allows 16-byte access
};

// Throws std::invalid_argument when `access` is vector and rows are not aligned.
Plan plan_rows(const Rows& rows, Access access);

// Of a layout with lines.
Plan plan_columns(const NormLayout& layout, bool aligned, Access access);

// What of the lines of a layout threadgroups get, each one.
int64_t shares_of_lines(const NormLayout& layout, const Plan& plan);

// How the rows of all tensors and results of a layout lie. Where the sizes of some of them nest in
// those of others, `alike` gives all of them the same.
Spacing spacing_of(const NormLayout& layout);
NormLayout alike(NormLayout layout);

// One dispatch of a plan; a huge tensor takes several. Segments follow one another.
struct Dispatch {
  struct Share {
    uint64_t first_row;
    uint32_t rows;
    uint32_t threadgroups;
  };
  Share shares[kMaxSegments];
  uint32_t threadgroups;  // of all
};

// Metal counts the threads of a grid in 32 bits; this stays clear of the last one. Tests lower it,
// to see several dispatches of a small tensor.
extern int64_t max_grid_threads;

// Of so many rows of each segment.
std::vector<Dispatch> dispatches(const Plan& plan, std::span<const int64_t> rows);

// The boundary on which rows of `type` must begin for vector access beside inputs of `dtype`: a
// word's, or half of one if that is what belongs to a word of inputs.
int64_t alignment_of(TensorType type, DType dtype);

// Do rows of `type` that start at byte_offset and lie as `layout` says all begin so?
bool rows_aligned(const RowLayout& layout, int64_t byte_offset, TensorType type, DType dtype);

// A bit for each tensor that is there and read by words, experts among them or not.
uint32_t tensors_of_words(const OpTable& op, uint32_t tensor_types, uint32_t scalars,
                          bool with_experts);

// Which buffers a call binds, a bit for each BufferIndex.
uint32_t bound_buffers(const OpTable& op, uint32_t tensor_types);

// The name that the kernel was instantiated with: "rms_norm_row_2_float16_vector".
std::string function_name(Op op, const Plan& plan, DType dtype);

// The line that instantiates that kernel at the end of its op's source (shaders/norm_kernels.h).
std::string instantiation(Op op, const Plan& plan, DType dtype);

}  // namespace mlxnorm::mps
