#include "parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace mlxnorm::cpu {
namespace {

// Has nobody written there since it was mapped?
bool is_fresh(const void* address) {
#ifdef __linux__
  static const auto page = uintptr_t(sysconf(_SC_PAGESIZE));
  void* const begin = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) & ~(page - 1));
  unsigned char resident = 1;
  return mincore(begin, page, &resident) == 0 && (resident & 1) == 0;
#else
  return false;
#endif
}

}  // namespace

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
    const int64_t middle = row_offset(rows, uint64_t(layout.rows / 2)) * element(r);
    if (is_fresh(static_cast<const char*>(results[r]) + middle)) {
      return false;
    }
  }
  return true;
}

}  // namespace mlxnorm::cpu
