// What host and shader must agree on: argument structs, buffer indices, function constants.
// Included by the Metal shaders, by the Objective-C++ that binds their arguments, and by the CPU
// kernels, which find a row the same way.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace mlxnorm {

// Where the rows of an activation lie: row (i0, i1, i2), counted with i2 fastest, starts at element
// i0 * stride0 + i1 * stride1 + i2 * stride2. Its last dimension always has stride 1.
struct RowLayout {
  int64_t stride0, stride1, stride2;
  uint32_t size1, size2;
};

inline int64_t row_offset(RowLayout rows, uint64_t row) {
  if (rows.size1 == 1 && rows.size2 == 1) {
    return int64_t(row) * rows.stride0;  // the usual case needs no 64-bit division
  }
  const uint64_t i2 = row % rows.size2;
  const uint64_t outer = row / rows.size2;
  const uint64_t i1 = outer % rows.size1;
  const uint64_t i0 = outer / rows.size1;
  return int64_t(i0) * rows.stride0 + int64_t(i1) * rows.stride1 + int64_t(i2) * rows.stride2;
}

enum RmsNormBuffer {
  kRmsNormX = 0,
  kRmsNormWeight = 1,
  kRmsNormOut = 2,
  kRmsNormParams = 3,
};

struct RmsNormParams {
  RowLayout x_rows;
  uint64_t first_row;  // of this dispatch; a huge tensor takes several
  uint32_t rows;       // in this dispatch
  uint32_t dim;
  float inverse_dim;
  float eps;
  float weight_offset;
};

// Choices that the Metal compiler should see as constants, fixed when a pipeline is made.
enum FunctionConstant {
  kHasWeightConstant = 0,          // bool
  kRoundBeforeWeightConstant = 1,  // bool, casting_mode "llama"
  kPrefetchWeightConstant = 2,     // bool, load the weight before the reduction's barrier
  kLanesPerRowConstant = 3,        // uint, threads of a SIMD group that share a short row
};

// Geometry limits that kernels are compiled for and that the host plans with.
enum Geometry {
  kSimdWidth = 32,
  kMaxThreads = 1024,
  kMaxSimdgroups = kMaxThreads / kSimdWidth,
  kWordBytes = 16,
};

}  // namespace mlxnorm
