// The plain kernel of the CPU, as plain.metal has it for a GPU.
#include <cstddef>
#include <cstdint>

extern "C" void plain(const uint64_t* __restrict in, uint64_t* __restrict out, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    uint64_t value = 0;
    for (size_t r = 0; r < READS; ++r) {
      value ^= in[r * count + i];
    }
    for (size_t w = 0; w < WRITES; ++w) {
      out[w * count + i] = value;
    }
  }
}
