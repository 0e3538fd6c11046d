// Which Metal kernel runs, with how many threads. Plain C++, so that it can be tested without a
// GPU. The layout of the sum (threads and words per row) follows from dim and dtype alone: a row
// gives the same bits whatever the number of rows, their strides and alignment.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../../shaders/params.h"
#include "../types.h"

namespace mlxnorm::mps {

enum class RowKernel : uint32_t {
  simd,  // several rows per threadgroup, lanes_per_row threads each
  row,   // one row per threadgroup, held in registers
  loop,  // one row per threadgroup, read twice
};

// TORCH_MLXNORM_KERNEL, for A/B runs and debugging.
enum class KernelChoice { automatic, scalar, vector };

// `value` is the environment variable's, or null. Throws std::invalid_argument when unknown.
KernelChoice parse_kernel_choice(const char* value);

struct Plan {
  RowKernel kernel;
  uint32_t words_per_thread;  // 0 for loop
  uint32_t lanes_per_row;     // simd only, else 32
  uint32_t threads;           // per threadgroup
  uint32_t rows_per_threadgroup;
  bool vector;    // 16-byte access instead of element by element
  bool prefetch;  // load everything before the first reduction
};

// Up to so many rows a plan prefetches, where its kernel can. Retune on a Mac.
constexpr int64_t kPrefetchRows = 32;

// Shaders count the elements of a row in 32 bits.
constexpr int64_t kMaxDim = int64_t(1) << 31;

// What shaders multiply a sum by, rounded once: a dim above 2^24 may not be a float itself.
constexpr float inverse_of(int64_t dim) {
  return float(1.0 / double(dim));
}

// `aligned`: every row that the kernel touches allows 16-byte access. Throws
// std::invalid_argument when `choice` is vector and it does not.
Plan plan_rows(DType dtype, int64_t rows, int64_t dim, bool aligned, KernelChoice choice);

// One dispatch of a plan; a huge tensor takes several.
struct Dispatch {
  uint64_t first_row;
  uint32_t rows;
  uint32_t threadgroups;
};

// Metal counts the threads of a grid in 32 bits; this stays clear of the last one. Tests lower it,
// to see several dispatches of a small tensor.
extern int64_t max_grid_threads;

std::vector<Dispatch> dispatches(const Plan& plan, int64_t rows);

// The boundary on which rows of `type` must begin for vector access beside activations of `dtype`:
// a word's, or half of one if that is what belongs to a word of activations.
int64_t alignment_of(OperandType type, DType dtype);

// Do rows of `type` that start at byte_offset and lie as `layout` says all begin so?
bool rows_aligned(const RowLayout& layout, int64_t byte_offset, OperandType type, DType dtype);

// Which buffers a call binds, a bit for each BufferIndex.
uint32_t bound_buffers(Op op, uint32_t operand_types);

// The name that the kernel was instantiated with: "rms_norm_row_2_float16_vector".
std::string function_name(Op op, const Plan& plan, DType dtype);

// The line that instantiates that kernel at the end of its op's source (shaders/kernels.h).
std::string instantiation(Op op, const Plan& plan, DType dtype);

}  // namespace mlxnorm::mps
