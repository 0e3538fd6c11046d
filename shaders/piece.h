// A word of a row as formulas see it; formulas/formula.h says what each function gives.
#pragma once

#include "divisor.h"
#include "formulas/formula.h"
#include "tensors.h"

constant uint choices [[function_constant(kChoicesConstant)]];

METAL_FUNC uint form() {
  return choice_in(choices, kForm);
}
// Is what channels are divided by not rounded to their dtype?
METAL_FUNC bool is_divisor_long() {
  return form() == kNormalizeFloat32;
}

// The results at a word as they are stored: of each a word, or two if it is float32 and T has 16
// bits.
template <typename T, int n>
struct Packed {
  enum { kMost = int(Element<T>::kPerWord) / int(Element<float>::kPerWord) };
  uint4 words[n][kMost];
};

template <typename Formula, typename T, bool kVector>
struct Piece {
  typedef ValuesOf<T> Values;
  enum { kElements = Element<T>::kPerWord };

  thread const Tensors<T>* tensors;
  thread const Prefetched<Formula, T, kVector>* prefetched;
  constant NormParams* params;
  uint start, dim;  // of the part of the row in which words are counted
  uint word;
  float statistic;

  METAL_FUNC Values input(int t) const {
    if (has_bit(prefetched_tensors, t)) {
      return prefetched->words[t].template values_of<T>();
    }
    return unpacked(load_word(tensors->input(t)));
  }

  METAL_FUNC bool has(int t) const { return tensor_type(tensor_types, t) != kAbsent; }

  METAL_FUNC Values operand(int t) const {
    if (has_bit(scalars, t)) {
      return filled(tensors->element(t, 0));
    }
    if (has_bit(prefetched_tensors, t)) {
      return prefetched->words[t].values(t);
    }
    TensorWord<T, kVector> now;
    now.load(tensors->from(t, start), t, word, dim);
    return now.values(t);
  }

  METAL_FUNC Values angles(int t) const {
    const bool full = choice(kFullTables) != 0;
    if (choice(kInterleaved) != 0 && !full) {
      return each_twice(t);
    }
    TensorWord<T, kVector> now;
    now.load(tensors->from(t, full ? start : 0), t, word, dim);
    return now.values(t);
  }

  METAL_FUNC float element(int t, uint i) const { return tensors->element(t, i); }

  // Several experts are on their way before the first of them is added.
  METAL_FUNC Values expert_sum(int experts, int routing_weights) const {
    enum { kAtOnce = 8 };
    Values sum = filled(0.0f);
    uint k = 0;
    for (; k + kAtOnce <= top_k(); k += kAtOnce) {
      uint4 words[kAtOnce];
      float weights[kAtOnce];
#pragma unroll
      for (uint i = 0; i < kAtOnce; ++i) {
        words[i] = expert(experts, k + i);
        weights[i] = tensors->element(routing_weights, k + i);
      }
#pragma unroll
      for (uint i = 0; i < kAtOnce; ++i) {
        sum = fma(weights[i], unpacked(words[i]), sum);
      }
    }
    for (; k < top_k(); ++k) {
      sum = fma(tensors->element(routing_weights, k), unpacked(expert(experts, k)), sum);
    }
    return sum;
  }
  METAL_FUNC uint4 expert(int t, uint k) const {
    return load_word(tensors->input(t) + k * params->steps[t]);
  }
  METAL_FUNC uint top_k() const { return params->top_k; }

  METAL_FUNC Values divided(Values x) const {
    const Divisor d = divisor(statistic, is_divisor_long());
    const DivisorsOf<T> divisors = {filled(d.value), filled(d.inverse), filled(d.rest)};
    return divisors.divide(x, is_divisor_long());
  }
  METAL_FUNC float root_dim() const { return params->root_dim; }

  METAL_FUNC float number(Number which) const { return params->numbers[which]; }
  METAL_FUNC uint choice(Choice which) const { return choice_in(choices, which); }

  METAL_FUNC bool has_kept() const { return false; }
  METAL_FUNC Values kept() const { return filled(0.0f); }

  METAL_FUNC Values unpacked(uint4 word_of_row) const {
    Values result;
    Element<T>::unpack(word_of_row, result.v);
    return result;
  }

  METAL_FUNC Values filled(float value) const { return splat<T>(value); }

  METAL_FUNC Values as_stored(Values x) const { return x.template rounded_as<T>(); }

  METAL_FUNC Values rounded(Values x) const {
    if (choice(kRoundIntermediates) != 0) {
      return as_stored(x);
    }
    return x;
  }

  METAL_FUNC Values rounded_as(int t, Values x) const {
    if (choice(kRoundIntermediates) == 0) {
      return x;
    }
    switch (tensor_type(tensor_types, t)) {
      case kFloat16:
        return x.template rounded_as<half>();
      case kBFloat16:
        return x.template rounded_as<bfloat>();
      default:
        return x;
    }
  }

  // ---- for the kernels ------------------------------------------------------------------------

  METAL_FUNC Piece part(uint first, uint count) const {
    Piece result = *this;
    result.start = first;
    result.dim = count;
    return result;
  }
  METAL_FUNC bool is_there() const { return word * kElements < dim; }

  static METAL_FUNC bool is_float32(int result) {
    return tensor_type(result_types, FirstResult<Formula>::value + result) == kFloat32;
  }

  METAL_FUNC Packed<T, Formula::kResults> packed(Results<Values, Formula::kResults> results) const {
    Packed<T, Formula::kResults> packed;
#pragma unroll
    for (int r = 0; r < Formula::kResults; ++r) {
      if (is_float32(r)) {
        pack_as<float>(results.values[r], packed.words[r]);
      } else {
        pack_as<T>(results.values[r], packed.words[r]);
      }
    }
    return packed;
  }
  template <typename U>
  static METAL_FUNC void pack_as(Values values, thread uint4* words) {
#pragma unroll
    for (int i = 0; i < int(kElements) / int(Element<U>::kPerWord); ++i) {
      words[i] = Element<U>::pack(values.v + i * Element<U>::kPerWord);
    }
  }

  METAL_FUNC void store(Results<Values, Formula::kResults> results) const {
#pragma unroll
    for (int r = 0; r < Formula::kResults; ++r) {
      if (is_float32(r)) {
        put(result<float>(r), results.values[r]);
      } else {
        put(result<T>(r), results.values[r]);
      }
    }
  }
  template <typename U>
  METAL_FUNC void put(device U* row, Values values) const {
    enum { kWords = int(kElements) / int(Element<U>::kPerWord) };
    uint4 words[kWords];
    pack_as<U>(values, words);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      Access<U, kVector>::store(row, word * kWords + i, dim, words[i]);
    }
  }

  METAL_FUNC void store_together(Packed<T, Formula::kResults> results,
                                 thread const Beside* beside) const {
#pragma unroll
    for (int r = 0; r < Formula::kResults; ++r) {
      if (is_float32(r)) {
        put_together(result<float>(r), results.words[r], beside[r]);
      } else {
        put_together(result<T>(r), results.words[r], beside[r]);
      }
    }
  }
  template <typename U>
  METAL_FUNC void put_together(device U* row, thread const uint4* words, Beside beside) const {
    enum { kWords = int(kElements) / int(Element<U>::kPerWord) };
    Access<U, kVector>::template store_together<kWords>(row, word * kWords, dim, words, beside);
  }

  template <typename U>
  METAL_FUNC device U* result(int r) const {
    return static_cast<device U*>(tensors->results[FirstResult<Formula>::value + r]) + start;
  }

  METAL_FUNC uint4 load_word(device const T* row) const {
    return Access<T, kVector>::load(row + start, word, dim);
  }

  // An element for both of a pair of neighbours.
  METAL_FUNC Values each_twice(int t) const {
    switch (tensor_type(tensor_types, t)) {
      case kFloat16:
        return each_twice_of(static_cast<device const half*>(tensors->tensors[t]));
      case kBFloat16:
        return each_twice_of(static_cast<device const bfloat*>(tensors->tensors[t]));
      default:
        return each_twice_of(static_cast<device const float*>(tensors->tensors[t]));
    }
  }
  template <typename U>
  METAL_FUNC Values each_twice_of(device const U* row) const {
    enum { kPairs = int(kElements) / 2 };
    float v[Element<U>::kPerWord];
    Element<U>::unpack(Access<U, kVector>::template load_part<kPairs>(row, word, dim / 2), v);
    Values result;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      result.v[2 * i] = result.v[2 * i + 1] = v[i];
    }
    return result;
  }
};

template <typename Formula, typename T, bool kVector>
METAL_FUNC Piece<Formula, T, kVector> piece_at(
    thread const Tensors<T>& tensors, thread const Prefetched<Formula, T, kVector>& prefetched,
    constant NormParams& params, uint word) {
  Piece<Formula, T, kVector> result;
  result.tensors = &tensors;
  result.prefetched = &prefetched;
  result.params = &params;
  result.start = 0;
  result.dim = params.dim;
  result.word = word;
  result.statistic = 0.0f;
  return result;
}
