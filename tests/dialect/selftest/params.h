// Shared by host and shader.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

struct Rows {
  uint32_t dim;
  int64_t stride;
};

inline int64_t row_start(Rows rows, uint64_t row) {
  return int64_t(row) * rows.stride;
}

struct Params {
  Rows rows;
  float eps;
};

enum { kHasWeight = 0, kParams = 2 };
