// Many divided by one number, by products.
#pragma once

#include "words.h"

// inverse is 1 / value; or that rounded towards zero, and rest what it lacks.
struct Divisor {
  float value, inverse, rest;
};

METAL_FUNC Divisor divisor(float value, bool with_rest) {
  Divisor d = {value, 1.0f / value, 0.0f};
  if (with_rest && value > 0.0f && isfinite(value)) {
    if (metal::fma(-value, d.inverse, 1.0f) < 0.0f) {
      d.inverse = as_type<float>(as_type<uint>(d.inverse) - 1);
    }
    d.rest = metal::fma(-value, d.inverse, 1.0f) * d.inverse;
  }
  return d;
}

// One for each element of a word of T. In 16 bits, whose rounding follows, products give what a
// division does, the sign of a zero as well. What was rounded to them needs no rest: the quotient
// of two such numbers lies further from the middle between two others than the product errs. In
// float32 a few would err.
template <typename T>
struct DivisorsOf {
  ValuesOf<T> value, inverse, rest;

  METAL_FUNC void set(int i, Divisor d) {
    value.v[i] = d.value;
    inverse.v[i] = d.inverse;
    rest.v[i] = d.rest;
  }
  METAL_FUNC ValuesOf<T> divide(ValuesOf<T> x, bool with_rest) const {
    if (Element<T>::kPerWord == Element<float>::kPerWord) {
      return x / value;
    }
    if (!with_rest) {
      return x * inverse;
    }
    const ValuesOf<T> of_rest = x * rest;
#pragma unroll
    for (int i = 0; i < Element<T>::kPerWord; ++i) {
      x.v[i] = metal::fma(x.v[i], inverse.v[i], of_rest.v[i]);
    }
    return x;
  }
};
