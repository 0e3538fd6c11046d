// What an op computes, row by row, written once for Metal and the CPU.
//
// A formula is a struct of static functions that are called for each piece of a row that a thread
// handles at once. `Row` stands for that piece; shaders/kernels.h and csrc/cpu/isa/kernel.h have
// one each. Its Values are float32, with +, *, / and exp_of_negative(x). No base classes: Metal has
// none.
//
//   first(row)              what the first sum of squares is over; kKeepFirst if that is more than
//                           reading an input, so that it is worth keeping
//   second(row, x)          what the second one is over, if kSums is 2; x is what first() gave
//   finish(row, x)          the outputs, from what the last sum was over; everything that is
//                           written has been read before
//
//   row.input(i)            input i, in the order of the schema
//   row.norm(x, i)          x / rms(x) * (weight i + weight_offset), where x is what the last sum
//                           was over
//   row.scaled(x)           x * scale, or x when there is none
//   row.activated_scale()   activation(scale)
//   row.expert_sum()        the sum over experts of routing weight * input 0
//   row.rounded(x)          rounded as storing it in a tensor would, if round_intermediates
#pragma once

#include "../params.h"

#ifndef __METAL_VERSION__
#define METAL_FUNC inline
#endif

namespace mlxnorm {

template <typename Values, int n>
struct Outputs {
  Values values[n];
};

// input i + N(x, weight j), as two steps.
template <typename Row, typename Values>
METAL_FUNC Values input_plus_norm(Row row, int i, Values x, int j) {
  return row.rounded(row.input(i) + row.rounded(row.norm(x, j)));
}

// As torch.nn.functional has them, by way of sigmoid(x) = 1 / (1 + exp(-x)).
template <typename Values>
METAL_FUNC Values activated(uint32_t activation, Values x) {
  switch (activation) {
    case kSilu:
      return x / (exp_of_negative(x) + 1.0f);
    case kSigmoid:
      return 1.0f / (exp_of_negative(x) + 1.0f);
    case kGeluTanh:
      // (1 + tanh(u)) / 2 = sigmoid(2u), precise even where tanh(u) is close to -1;
      // 2u = 2 sqrt(2/pi) (x + 0.044715 x^3).
      return x / (exp_of_negative(x * (x * x * 0.07135481627260025f + 1.5957691216057308f)) + 1.0f);
    default:
      return x;
  }
}

}  // namespace mlxnorm
