#include "parallel.h"

#include <cstdint>

namespace mlxnorm::cpu {

bool worth_streaming(const at::Tensor& out, int64_t dim) {
  // Smaller than most last-level caches; measured in docs/performance.md.
  constexpr size_t kLastLevelCache = size_t(32) << 20;
  constexpr uintptr_t kAlignment = 64;
  return out.nbytes() >= kLastLevelCache && (dim * out.element_size()) % kAlignment == 0 &&
         reinterpret_cast<uintptr_t>(out.const_data_ptr()) % kAlignment == 0;
}

}  // namespace mlxnorm::cpu
