// A word of a row as formulas see it; formulas/formula.h says what each function gives.
#pragma once

#include "formulas/formula.h"
#include "tensors.h"

constant uint choices [[function_constant(kChoicesConstant)]];

template <typename Formula, typename T, bool kVector>
struct Piece {
  typedef ValuesOf<T> Values;
  typedef uint Index;
  enum { kElements = Element<T>::kPerWord };

  thread const Tensors<T>* tensors;
  thread const Prefetched<Formula, T, kVector>* prefetched;
  constant NormParams* params;
  uint start, dim;  // of the part of the row in which words are counted
  uint word;
  float inverse_rms;

  METAL_FUNC Values input(int t) const {
    if (has_bit(prefetched_tensors, t)) {
      return prefetched->words[t].template values_of<T>();
    }
    return load(tensors->input(t));
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

  METAL_FUNC Values expert(int t, uint k) const {
    return load(tensors->input(t) + k * params->steps[t]);
  }
  METAL_FUNC uint top_k() const { return params->top_k; }

  METAL_FUNC float number(Number which) const { return params->numbers[which]; }
  METAL_FUNC uint choice(Choice which) const { return choice_in(choices, which); }

  METAL_FUNC bool has_kept() const { return false; }
  METAL_FUNC Values kept() const { return filled(0.0f); }

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

  METAL_FUNC void store(Results<Values, Formula::kResults> results) const {
#pragma unroll
    for (int r = 0; r < Formula::kResults; ++r) {
      const int number = FirstResult<Formula>::value + r;
      if (tensor_type(result_types, number) == kFloat32) {
        store_as(static_cast<device float*>(tensors->results[number]), results.values[r]);
      } else {
        store_as(static_cast<device T*>(tensors->results[number]), results.values[r]);
      }
    }
  }

  // One word, or two of float32 where T has 16 bits.
  template <typename U>
  METAL_FUNC void store_as(device U* row, Values values) const {
    enum { kWords = int(Element<T>::kPerWord) / int(Element<U>::kPerWord) };
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      Access<U, kVector>::store(row + start, word * kWords + i, dim,
                                Element<U>::pack(values.v + i * Element<U>::kPerWord));
    }
  }

  METAL_FUNC Values load(device const T* row) const {
    Values result;
    Element<T>::unpack(Access<T, kVector>::load(row + start, word, dim), result.v);
    return result;
  }

  // An element for both of a pair of neighbours.
  METAL_FUNC Values each_twice(int t) const {
    Values result = filled(0.0f);
    const uint first = word * Element<T>::kPerWord;
#pragma unroll
    for (int i = 0; i < Element<T>::kPerWord; i += 2) {
      if (first + i < dim) {
        result.v[i] = result.v[i + 1] = tensors->element(t, (first + i) / 2);
      }
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
  result.inverse_rms = 0.0f;
  return result;
}
