// The sums of one thread of norm_loop, without the row: what a row of 2^31 elements has it add.
#include "../shaders/reduce.h"

// sums[i]: of as many words as asked for whose elements are all values[i]. naive[i]: with plain
// additions.
#define SUMS_OF_EQUAL_WORDS(name, T)                                                         \
  kernel void name(device const float* values [[buffer(0)]],                                 \
                   device const uint* words [[buffer(1)]], device float* sums [[buffer(2)]], \
                   device float* naive [[buffer(3)]], uint i [[thread_position_in_grid]]) {  \
    const float squares = sum_of_squares(splat<T>(values[i]));                               \
    CompensatedSum sum = {0.0f, 0.0f};                                                       \
    float plain = 0.0f;                                                                      \
    for (uint word = words[0]; word > 0; --word) {                                           \
      sum.add(squares);                                                                      \
      plain += squares;                                                                      \
    }                                                                                        \
    sums[i] = sum.sum;                                                                       \
    naive[i] = plain;                                                                        \
  }

SUMS_OF_EQUAL_WORDS(float32, float)
SUMS_OF_EQUAL_WORDS(float16, half)
SUMS_OF_EQUAL_WORDS(bfloat16, bfloat)
