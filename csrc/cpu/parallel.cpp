#include "parallel.h"

#include <cstdint>

namespace mlxnorm::cpu {

bool worth_streaming(const at::Tensor* const* outs, int out_count, int64_t dim) {
  // What one core may hope to find again of its share of the last-level cache.
  constexpr size_t kCached = size_t(20) << 20;
  constexpr uintptr_t kAlignment = 64;
  size_t written = 0;
  for (int i = 0; i < out_count; ++i) {
    written += outs[i]->nbytes();
    if ((dim * outs[i]->element_size()) % kAlignment != 0 ||
        reinterpret_cast<uintptr_t>(outs[i]->const_data_ptr()) % kAlignment != 0) {
      return false;
    }
  }
  return written >= kCached;
}

}  // namespace mlxnorm::cpu
