// Memory of a kernel's own.
#pragma once

#include <cstdint>
#include <memory>

namespace mlxnorm::cpu {

// Floats, on a cache line: vectors that lie across two cost a tenth of the time.
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    if (count != 0) {
      constexpr size_t kLine = 64;
      const size_t size = size_t(count) * sizeof(float);
      size_t space = size + kLine;
      memory_.reset(new float[space / sizeof(float)]);
      floats_ = memory_.get();
      std::align(kLine, size, floats_, space);
    }
  }

  float* floats() const { return static_cast<float*>(floats_); }

 private:
  std::unique_ptr<float[]> memory_;
  void* floats_ = nullptr;
};

}  // namespace mlxnorm::cpu
