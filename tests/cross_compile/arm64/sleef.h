// Declares what PyTorch's vectors for arm64 take from Sleef, whose header in a wheel for x86-64
// declares that machine's functions only. The names are those of vec128_{float,double}_neon.h.
#pragma once

#include <arm_neon.h>

#define SLEEF_UNARY(name, precision)                     \
  float32x4_t Sleef_##name##f4_##precision(float32x4_t); \
  float64x2_t Sleef_##name##d2_##precision(float64x2_t);
#define SLEEF_BINARY(name, precision)                                \
  float32x4_t Sleef_##name##f4##precision(float32x4_t, float32x4_t); \
  float64x2_t Sleef_##name##d2##precision(float64x2_t, float64x2_t);

extern "C" {
SLEEF_UNARY(acos, u10)
SLEEF_UNARY(acosh, u10)
SLEEF_UNARY(asin, u10)
SLEEF_UNARY(asinh, u10)
SLEEF_UNARY(atan, u10)
SLEEF_UNARY(atanh, u10)
SLEEF_UNARY(cos, u10)
SLEEF_UNARY(cos, u35)
SLEEF_UNARY(cosh, u10)
SLEEF_UNARY(erf, u10)
SLEEF_UNARY(erfc, u15)
SLEEF_UNARY(exp, u10)
SLEEF_UNARY(exp2, u10)
SLEEF_UNARY(expm1, u10)
SLEEF_UNARY(lgamma, u10)
SLEEF_UNARY(log, u10)
SLEEF_UNARY(log10, u10)
SLEEF_UNARY(log1p, u10)
SLEEF_UNARY(log2, u10)
SLEEF_UNARY(sin, u10)
SLEEF_UNARY(sin, u35)
SLEEF_UNARY(sinh, u10)
SLEEF_UNARY(tan, u10)
SLEEF_UNARY(tanh, u10)
SLEEF_BINARY(atan2, _u10)
SLEEF_BINARY(copysign, )
SLEEF_BINARY(fmod, )
SLEEF_BINARY(hypot, _u05)
SLEEF_BINARY(nextafter, )
SLEEF_BINARY(pow, _u10)
}

#undef SLEEF_UNARY
#undef SLEEF_BINARY
