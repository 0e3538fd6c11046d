#include "parallel.h"

#include <cstdint>

namespace mlxnorm::cpu {

bool worth_streaming(const NormLayout& layout, const void* const* results, size_t result_count) {
  // What one core may hope to find again of its share of the last-level cache.
  constexpr int64_t kCached = int64_t(20) << 20;
  constexpr int64_t kAlignment = 64;
  const auto element = [&](size_t r) {
    return int64_t(element_size(tensor_type(layout.result_types, int(r))));
  };
  int64_t bytes = 0;
  const int64_t elements = layout.rows * layout.dim * std::max<int64_t>(layout.line, 1);
  for (size_t r = 0; r < result_count; ++r) {
    bytes += elements * element(r);
  }
  if (bytes < kCached) {
    return false;
  }
  for (size_t r = 0; r < result_count; ++r) {
    const RowLayout& rows = layout.results[r];
    const auto aligned = [size = element(r)](int64_t stride) {
      return stride * size % kAlignment == 0;
    };
    if (!aligned(rows.stride0) || !aligned(rows.stride1) || !aligned(rows.stride2) ||
        !aligned(layout.result_step) || reinterpret_cast<uintptr_t>(results[r]) % kAlignment != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace mlxnorm::cpu
