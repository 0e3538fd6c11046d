// Memory that a thread works in.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace mlxnorm::cpu {

// Of a thread, on a cache line: vectors that lie across two cost a tenth of the time. Small, it is
// on the stack: to allocate it takes as long as a short row.
class Scratch {
 public:
  explicit Scratch(int64_t size) {
    if (size > kSmall) {
      allocated_.reset(new (kLine) float[size_t(size)]);
    }
  }

  float* floats() { return allocated_ ? allocated_.get() : small_; }

 private:
  static constexpr std::align_val_t kLine{64};
  static constexpr int64_t kSmall = 8192;
  struct Free {
    void operator()(float* floats) const { ::operator delete[](floats, kLine); }
  };

  alignas(64) float small_[kSmall];
  std::unique_ptr<float[], Free> allocated_;
};

}  // namespace mlxnorm::cpu
