// What a row is multiplied or divided by, from the sum of its squares: in most ops the inverse rms,
// in those that normalize channels what their form says (formulas/channel_rms_norm.h).
#pragma once

#include "piece.h"
#include "reduce.h"

// The squares of a word, as they are summed.
template <typename T>
METAL_FUNC float squares(ValuesOf<T> values) {
  if (form() == kRmsSteps) {
    return sum_of((values * values).template rounded_as<T>());
  }
  return sum_of_squares(values);
}

// Those of one channel in a word of columns.
template <typename T>
METAL_FUNC ValuesOf<T> plus_squares(ValuesOf<T> sum, ValuesOf<T> values) {
  if (form() == kRmsSteps) {
    return sum + (values * values).template rounded_as<T>();
  }
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    sum.v[i] = metal::fma(values.v[i], values.v[i], sum.v[i]);
  }
  return sum;
}

// Metal's max takes a number for a NaN.
METAL_FUNC float at_least(float least, float v) {
  return v < least ? least : v;
}

template <typename T>
METAL_FUNC float statistic(float sum, constant NormParams& params) {
  switch (form()) {
    case kRmsSteps: {
      const float mean = Element<T>::rounded(sum / float(params.dim));
      return Element<T>::rounded(metal::precise::sqrt(Element<T>::rounded(mean + params.eps)));
    }
    case kNormalize:
      return at_least(params.eps, Element<T>::rounded(metal::precise::sqrt(sum)));
    case kNormalizeFloat32:
      return at_least(params.eps, metal::precise::sqrt(sum));
    default:  // kRms
      return inverse_rms(sum, params.inverse_dim, params.eps);
  }
}
