#include "parallel.h"

#include <cstdint>

namespace mlxnorm::cpu {

bool worth_streaming(const at::Tensor& out, int64_t dim) {
  // What one core may hope to find again of its share of the last-level cache.
  constexpr size_t kCached = size_t(20) << 20;
  constexpr uintptr_t kAlignment = 64;
  return out.nbytes() >= kCached && (dim * out.element_size()) % kAlignment == 0 &&
         reinterpret_cast<uintptr_t>(out.const_data_ptr()) % kAlignment == 0;
}

}  // namespace mlxnorm::cpu
