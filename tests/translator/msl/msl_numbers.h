// Scalar types: half and bfloat as MSL defines them, the short integer names, flags of barriers.
#pragma once

// Not always_inline, as on the GPU: large kernels would take minutes to compile.
#define METAL_FUNC inline

// A function of C's, by its name.
#ifdef __CUDACC_RTC__
#define SIM_C(name) ::name
#else
#define SIM_C(name) __builtin_##name
#endif

using uint = uint32_t;
using uchar = uint8_t;
using ushort = uint16_t;
using ulong = uint64_t;

namespace sim {

template <class To, class From>
METAL_FUNC To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of the same size");
  To to;
  SIM_C(memcpy)(&to, &from, sizeof to);
  return to;
}

// Every conversion rounds to nearest, ties to even.
#ifdef __CUDACC_RTC__
// By instruction; a NaN is another one.
METAL_FUNC uint16_t half_bits_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
METAL_FUNC float float_from_half_bits(uint16_t half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}
METAL_FUNC uint16_t bfloat_bits_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#else
METAL_FUNC uint16_t half_bits_from_float(float value) {
  uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits >= 0x7f800000u) {  // infinity, or NaN: keep the payload's top bits and make it quiet
    const uint32_t nan = bits > 0x7f800000u ? 0x200u | ((bits >> 13) & 0x3ffu) : 0u;
    return static_cast<uint16_t>(sign | 0x7c00u | nan);
  }
  if (bits >= 0x477ff000u) {  // 65520 and above round to infinity
    return static_cast<uint16_t>(sign | 0x7c00u);
  }
  if (bits < 0x38800000u) {
    // A subnormal result: the float addition rounds, because 0.5f has the subnormals' unit (2^-24).
    const float shifted = bit_cast<float>(bits) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t tie_to_even = (bits >> 13) & 1u;
  bits += 0xfffu + tie_to_even - (112u << 23);
  return static_cast<uint16_t>(sign | (bits >> 13));
}

METAL_FUNC float float_from_half_bits(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {
    return bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude < 0x400u) {  // subnormal: a multiple of 2^-24, exact in float
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return bit_cast<float>(sign | bit_cast<uint32_t>(value));
  }
  return bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
}

METAL_FUNC uint16_t bfloat_bits_from_float(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#endif

METAL_FUNC float float_from_bfloat_bits(uint16_t bfloat) {
  return bit_cast<float>(static_cast<uint32_t>(bfloat) << 16);
}

}  // namespace sim

struct half {
  uint16_t bits;

  half() = default;
  template <class A, class = std::enable_if_t<std::is_arithmetic_v<A>>>
  METAL_FUNC half(A value) : bits(sim::half_bits_from_float(static_cast<float>(value))) {}
  METAL_FUNC operator float() const { return sim::float_from_half_bits(bits); }
};

// Unlike half, bfloat is made from float only on demand.
struct bfloat {
  uint16_t bits;

  bfloat() = default;
  template <class A, class = std::enable_if_t<std::is_arithmetic_v<A> || std::is_same_v<A, half>>>
  METAL_FUNC explicit bfloat(A value)
      : bits(sim::bfloat_bits_from_float(static_cast<float>(value))) {}
  METAL_FUNC operator float() const { return sim::float_from_bfloat_bits(bits); }
};

namespace sim {

#ifdef __CUDACC_RTC__
METAL_FUNC void convert_pair(half* to, const float* from) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(from[1]), "f"(from[0]));
  memcpy(to, &bits, sizeof bits);
}
METAL_FUNC void convert_pair(bfloat* to, const float* from) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(from[1]), "f"(from[0]));
  memcpy(to, &bits, sizeof bits);
}
#endif

template <class T>
constexpr bool is_small_float = std::is_same_v<T, half> || std::is_same_v<T, bfloat>;

template <class T>
constexpr bool is_scalar = std::is_arithmetic_v<T> || is_small_float<T>;

// The usual arithmetic conversions: with float the result is float, with an integer it stays small.
template <class Small, class Other>
using arithmetic_result = std::conditional_t<std::is_floating_point_v<Other>, float, Small>;

}  // namespace sim

#define SIM_SMALL_FLOAT_OPERATOR(T, op)                                         \
  METAL_FUNC T operator op(T a, T b) {                                          \
    return static_cast<T>(static_cast<float>(a) op static_cast<float>(b));      \
  }                                                                             \
  template <class A, class = std::enable_if_t<std::is_arithmetic_v<A>>>         \
  METAL_FUNC auto operator op(T a, A b) {                                       \
    using Result = sim::arithmetic_result<T, A>;                                \
    return static_cast<Result>(static_cast<float>(a) op static_cast<float>(b)); \
  }                                                                             \
  template <class A, class = std::enable_if_t<std::is_arithmetic_v<A>>>         \
  METAL_FUNC auto operator op(A a, T b) {                                       \
    using Result = sim::arithmetic_result<T, A>;                                \
    return static_cast<Result>(static_cast<float>(a) op static_cast<float>(b)); \
  }                                                                             \
  template <class A, class = std::enable_if_t<sim::is_scalar<A>>>               \
  METAL_FUNC T& operator op## = (T & a, A b) {                                  \
    return a = static_cast<T>(static_cast<float>(a) op static_cast<float>(b));  \
  }
#define SIM_SMALL_FLOAT_COMPARISON(T, op)                               \
  METAL_FUNC bool operator op(T a, T b) {                               \
    return static_cast<float>(a) op static_cast<float>(b);              \
  }                                                                     \
  template <class A, class = std::enable_if_t<std::is_arithmetic_v<A>>> \
  METAL_FUNC bool operator op(T a, A b) {                               \
    return static_cast<float>(a) op static_cast<float>(b);              \
  }                                                                     \
  template <class A, class = std::enable_if_t<std::is_arithmetic_v<A>>> \
  METAL_FUNC bool operator op(A a, T b) {                               \
    return static_cast<float>(a) op static_cast<float>(b);              \
  }
#define SIM_SMALL_FLOAT_OPERATORS(T)               \
  SIM_SMALL_FLOAT_OPERATOR(T, +)                   \
  SIM_SMALL_FLOAT_OPERATOR(T, -)                   \
  SIM_SMALL_FLOAT_OPERATOR(T, *)                   \
  SIM_SMALL_FLOAT_OPERATOR(T, /)                   \
  SIM_SMALL_FLOAT_COMPARISON(T, ==)                \
  SIM_SMALL_FLOAT_COMPARISON(T, !=)                \
  SIM_SMALL_FLOAT_COMPARISON(T, <)                 \
  SIM_SMALL_FLOAT_COMPARISON(T, >)                 \
  SIM_SMALL_FLOAT_COMPARISON(T, <=)                \
  SIM_SMALL_FLOAT_COMPARISON(T, >=)                \
  METAL_FUNC T operator-(T a) {                    \
    return static_cast<T>(-static_cast<float>(a)); \
  }                                                \
  METAL_FUNC T operator+(T a) {                    \
    return a;                                      \
  }
SIM_SMALL_FLOAT_OPERATORS(half)
SIM_SMALL_FLOAT_OPERATORS(bfloat)
#undef SIM_SMALL_FLOAT_OPERATORS
#undef SIM_SMALL_FLOAT_COMPARISON
#undef SIM_SMALL_FLOAT_OPERATOR

// MSL's literal suffixes 1.0h and 1.0bf.
METAL_FUNC half operator""h(long double value) {
  return half(static_cast<float>(value));
}
METAL_FUNC bfloat operator"" bf(long double value) {
  return bfloat(static_cast<float>(value));
}
METAL_FUNC half operator""h(unsigned long long value) {
  return half(value);
}
METAL_FUNC bfloat operator"" bf(unsigned long long value) {
  return bfloat(value);
}

#ifndef INFINITY
#define INFINITY __builtin_bit_cast(float, 0x7f800000u)
#endif
#ifndef NAN
#define NAN __builtin_bit_cast(float, 0x7fc00000u)
#endif
#define MAXFLOAT 0x1.fffffep+127f
#define FLT_MAX 0x1.fffffep+127f
#define FLT_MIN 0x1p-126f
#define FLT_EPSILON 0x1p-23f

namespace metal {

template <class T>
struct numeric_limits {
  static constexpr METAL_FUNC T min() {
    return std::is_signed_v<T> ? static_cast<T>(T(1) << (8 * sizeof(T) - 1)) : T(0);
  }
  static constexpr METAL_FUNC T lowest() { return min(); }
  static constexpr METAL_FUNC T max() { return static_cast<T>(~min()); }
};
template <>
struct numeric_limits<float> {
  static constexpr METAL_FUNC float min() { return FLT_MIN; }
  static constexpr METAL_FUNC float lowest() { return -FLT_MAX; }
  static constexpr METAL_FUNC float max() { return FLT_MAX; }
  static constexpr METAL_FUNC float epsilon() { return FLT_EPSILON; }
  static constexpr METAL_FUNC float infinity() { return INFINITY; }
  static constexpr METAL_FUNC float quiet_NaN() { return NAN; }
};
template <>
struct numeric_limits<half> {
  static METAL_FUNC half min() { return half(0x1p-14f); }
  static METAL_FUNC half lowest() { return half(-65504.0f); }
  static METAL_FUNC half max() { return half(65504.0f); }
  static METAL_FUNC half epsilon() { return half(0x1p-10f); }
  static METAL_FUNC half infinity() { return half(INFINITY); }
  static METAL_FUNC half quiet_NaN() { return half(NAN); }
};
template <>
struct numeric_limits<bfloat> {
  static METAL_FUNC bfloat min() { return bfloat(0x1p-126f); }
  static METAL_FUNC bfloat lowest() { return bfloat(-0x1.fep+127f); }
  static METAL_FUNC bfloat max() { return bfloat(0x1.fep+127f); }
  static METAL_FUNC bfloat epsilon() { return bfloat(0x1p-7f); }
  static METAL_FUNC bfloat infinity() { return bfloat(INFINITY); }
  static METAL_FUNC bfloat quiet_NaN() { return bfloat(NAN); }
};

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
};
METAL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return static_cast<mem_flags>(static_cast<uint>(a) | static_cast<uint>(b));
}

template <class A, class B>
constexpr bool is_same_v = std::is_same_v<A, B>;
template <class A, class B>
using is_same = std::is_same<A, B>;
template <bool B, class T = void>
using enable_if_t = std::enable_if_t<B, T>;
template <bool B, class T, class F>
using conditional_t = std::conditional_t<B, T, F>;
using std::conditional;
using std::enable_if;
using std::false_type;
using std::integral_constant;
using std::true_type;

}  // namespace metal
