// Math and common functions, for scalars and, element by element, for vectors.
//
// Transcendental functions are evaluated in double and rounded once. A GPU's may differ by a few
// units in the last place; a test that compares with a tolerance does not mind.
#pragma once

// SIM_NATIVE_MATH: as CUDA has them in float, for measurements of speed.
#ifdef SIM_NATIVE_MATH
#define SIM_ONCE_ROUNDED(name) ::name##f(x)
#define SIM_RSQRT ::rsqrtf(x)
#else
#define SIM_ONCE_ROUNDED(name) SIM_C(name)(static_cast<double>(x))
#define SIM_RSQRT static_cast<double>(1.0f) / SIM_C(sqrt)(static_cast<double>(x))
#endif

namespace metal {

#define SIM_VECTORIZE_1(name)                           \
  template <class T, int N>                             \
  METAL_FUNC vec<T, N> name(const vec<T, N>& a) {       \
    vec<T, N> result;                                   \
    for (int i = 0; i < N; ++i) result[i] = name(a[i]); \
    return result;                                      \
  }
#define SIM_VECTORIZE_2(name)                                         \
  template <class T, int N>                                           \
  METAL_FUNC vec<T, N> name(const vec<T, N>& a, const vec<T, N>& b) { \
    vec<T, N> result;                                                 \
    for (int i = 0; i < N; ++i) result[i] = name(a[i], b[i]);         \
    return result;                                                    \
  }

#define SIM_MATH_FUNCTION(name, expression)     \
  METAL_FUNC float name(float x) {              \
    return static_cast<float>(expression);      \
  }                                             \
  METAL_FUNC half name(half h) {                \
    return half(name(static_cast<float>(h)));   \
  }                                             \
  METAL_FUNC bfloat name(bfloat b) {            \
    return bfloat(name(static_cast<float>(b))); \
  }                                             \
  SIM_VECTORIZE_1(name)
SIM_MATH_FUNCTION(sqrt, SIM_C(sqrtf)(x))
SIM_MATH_FUNCTION(rsqrt, SIM_RSQRT)
SIM_MATH_FUNCTION(exp, SIM_ONCE_ROUNDED(exp))
SIM_MATH_FUNCTION(exp2, SIM_ONCE_ROUNDED(exp2))
SIM_MATH_FUNCTION(log, SIM_ONCE_ROUNDED(log))
SIM_MATH_FUNCTION(log2, SIM_ONCE_ROUNDED(log2))
SIM_MATH_FUNCTION(sin, SIM_ONCE_ROUNDED(sin))
SIM_MATH_FUNCTION(cos, SIM_ONCE_ROUNDED(cos))
SIM_MATH_FUNCTION(tanh, SIM_ONCE_ROUNDED(tanh))
SIM_MATH_FUNCTION(floor, SIM_C(floorf)(x))
SIM_MATH_FUNCTION(ceil, SIM_C(ceilf)(x))
SIM_MATH_FUNCTION(trunc, SIM_C(truncf)(x))
SIM_MATH_FUNCTION(round, SIM_C(roundf)(x))
SIM_MATH_FUNCTION(rint, SIM_C(rintf)(x))
SIM_MATH_FUNCTION(fabs, SIM_C(fabsf)(x))
#undef SIM_MATH_FUNCTION

template <class T, class = std::enable_if_t<sim::is_scalar<T>>>
METAL_FUNC T abs(T x) {
  if constexpr (std::is_integral_v<T>) {
    return x < 0 ? static_cast<T>(-x) : x;
  } else {
    return fabs(x);
  }
}
SIM_VECTORIZE_1(abs)

METAL_FUNC float fma(float a, float b, float c) {
  return SIM_C(fmaf)(a, b, c);
}
METAL_FUNC half fma(half a, half b, half c) {
  // The product of two halves is exact in double, so one rounding remains, through float.
  return half(static_cast<float>(static_cast<double>(static_cast<float>(a)) *
                                     static_cast<double>(static_cast<float>(b)) +
                                 static_cast<double>(static_cast<float>(c))));
}
template <class T, int N>
METAL_FUNC vec<T, N> fma(const vec<T, N>& a, const vec<T, N>& b, const vec<T, N>& c) {
  vec<T, N> result;
  for (int i = 0; i < N; ++i) result[i] = fma(a[i], b[i], c[i]);
  return result;
}

METAL_FUNC float pow(float a, float b) {
  return static_cast<float>(SIM_C(pow)(static_cast<double>(a), static_cast<double>(b)));
}
METAL_FUNC float fmod(float a, float b) {
  return SIM_C(fmodf)(a, b);
}
METAL_FUNC float copysign(float a, float b) {
  return SIM_C(copysignf)(a, b);
}
METAL_FUNC bool isnan(float x) {
  return SIM_C(isnan)(x);
}
METAL_FUNC bool isinf(float x) {
  return SIM_C(isinf)(x);
}
METAL_FUNC bool isfinite(float x) {
  return SIM_C(isfinite)(x);
}

// Overloads, not templates, as in MSL: an operand may be a function constant. For floating point
// min and max are fmin and fmax: a NaN loses against a number.
#define SIM_COMMON_FUNCTIONS(T)                                                          \
  METAL_FUNC T min(T a, T b) {                                                           \
    if constexpr (std::is_integral_v<T>) {                                               \
      return b < a ? b : a;                                                              \
    } else {                                                                             \
      return static_cast<T>(SIM_C(fminf)(static_cast<float>(a), static_cast<float>(b))); \
    }                                                                                    \
  }                                                                                      \
  METAL_FUNC T max(T a, T b) {                                                           \
    if constexpr (std::is_integral_v<T>) {                                               \
      return a < b ? b : a;                                                              \
    } else {                                                                             \
      return static_cast<T>(SIM_C(fmaxf)(static_cast<float>(a), static_cast<float>(b))); \
    }                                                                                    \
  }                                                                                      \
  METAL_FUNC T clamp(T value, T low, T high) {                                           \
    return min(max(value, low), high);                                                   \
  }
SIM_COMMON_FUNCTIONS(char)
SIM_COMMON_FUNCTIONS(uchar)
SIM_COMMON_FUNCTIONS(short)
SIM_COMMON_FUNCTIONS(ushort)
SIM_COMMON_FUNCTIONS(int)
SIM_COMMON_FUNCTIONS(uint)
SIM_COMMON_FUNCTIONS(long)
SIM_COMMON_FUNCTIONS(ulong)
SIM_COMMON_FUNCTIONS(half)
SIM_COMMON_FUNCTIONS(bfloat)
SIM_COMMON_FUNCTIONS(float)
#undef SIM_COMMON_FUNCTIONS
SIM_VECTORIZE_2(min)
SIM_VECTORIZE_2(max)
METAL_FUNC float fmin(float a, float b) {
  return min(a, b);
}
METAL_FUNC float fmax(float a, float b) {
  return max(a, b);
}

template <class T, int N>
METAL_FUNC vec<T, N> clamp(const vec<T, N>& value, const vec<T, N>& low, const vec<T, N>& high) {
  return min(max(value, low), high);
}
template <class T, class = std::enable_if_t<sim::is_scalar<T>>>
METAL_FUNC T select(T a, T b, bool condition) {
  return condition ? b : a;
}
template <class T, int N>
METAL_FUNC vec<T, N> select(const vec<T, N>& a, const vec<T, N>& b, const vec<bool, N>& condition) {
  vec<T, N> result;
  for (int i = 0; i < N; ++i) result[i] = condition[i] ? b[i] : a[i];
  return result;
}
template <int N>
METAL_FUNC bool any(const vec<bool, N>& v) {
  bool result = false;
  for (int i = 0; i < N; ++i) result = result || v[i];
  return result;
}
template <int N>
METAL_FUNC bool all(const vec<bool, N>& v) {
  bool result = true;
  for (int i = 0; i < N; ++i) result = result && v[i];
  return result;
}

template <class T, int N>
METAL_FUNC T dot(const vec<T, N>& a, const vec<T, N>& b) {
  T result = static_cast<T>(a[0] * b[0]);
  for (int i = 1; i < N; ++i) result = static_cast<T>(result + a[i] * b[i]);
  return result;
}
template <int N>
METAL_FUNC float length_squared(const vec<float, N>& a) {
  return dot(a, a);
}

#ifdef __CUDACC_RTC__
METAL_FUNC uint popcount(uint x) {
  return static_cast<uint>(__popc(x));
}
METAL_FUNC uint clz(uint x) {
  return static_cast<uint>(__clz(x));
}
METAL_FUNC uint ctz(uint x) {
  return x == 0 ? 32u : static_cast<uint>(__ffs(x) - 1);
}
#else
METAL_FUNC uint popcount(uint x) {
  return static_cast<uint>(__builtin_popcount(x));
}
METAL_FUNC uint clz(uint x) {
  return x == 0 ? 32u : static_cast<uint>(__builtin_clz(x));
}
METAL_FUNC uint ctz(uint x) {
  return x == 0 ? 32u : static_cast<uint>(__builtin_ctz(x));
}
#endif
METAL_FUNC uint mulhi(uint a, uint b) {
  return static_cast<uint>((static_cast<uint64_t>(a) * b) >> 32);
}
template <class T>
METAL_FUNC T divide(T a, T b) {
  return static_cast<T>(a / b);
}

namespace precise {
using metal::cos;
using metal::divide;
using metal::exp;
using metal::exp2;
using metal::fma;
using metal::fmax;
using metal::fmin;
using metal::log;
using metal::log2;
using metal::pow;
using metal::rsqrt;
using metal::sin;
using metal::sqrt;
using metal::tanh;
}  // namespace precise
namespace fast = precise;

#undef SIM_C
#undef SIM_ONCE_ROUNDED
#undef SIM_RSQRT
#undef SIM_VECTORIZE_1
#undef SIM_VECTORIZE_2

}  // namespace metal
