// Faults that the sanitizers must find. Compiled with the flags of each half of the product, never
// into the product: run.py plants them before it believes a clean run.
#include <cstdint>
#include <thread>
#include <vector>

// What the compiler cannot see through.
static volatile int opaque_one = 1;

extern "C" {

// As a row of scratch that is one element short.
float heap_overflow() {
  std::vector<float> scratch(64, 0.0f);
  float* end = scratch.data() + scratch.size();
  return end[opaque_one - 1];
}

// As rows * dim, of sizes that were not checked.
int signed_overflow() {
  int rows = INT32_MAX - 1 + opaque_one;
  return rows + opaque_one;
}

// As a vector load of a row at an odd offset.
uint32_t misaligned_load() {
  alignas(8) char row[16] = {};
  return *reinterpret_cast<uint32_t*>(row + opaque_one);
}

// As a cache that is filled without its lock.
int data_race() {
  static volatile int shared = 0;  // or it is kept in a register
  const auto fill = [] {
    for (int i = 0; i < 1000; ++i) shared = shared + opaque_one;
  };
  std::thread other(fill);
  fill();
  other.join();
  return shared;
}
}
