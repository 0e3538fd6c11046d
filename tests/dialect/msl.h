// Metal's types and functions as clang's C++ for OpenCL can declare them. Nothing is defined: the
// shaders are checked, not run.
#pragma once

#pragma OPENCL EXTENSION cl_khr_fp16 : enable

// ---- address spaces -----------------------------------------------------------------------------
// `constant` is a keyword of OpenCL, with the same meaning.
#define device __global
#define threadgroup __local
#define thread __private

// Metal copies any trivial struct out of any address space; OpenCL's implicit constructors do not
// read `constant` memory. rewrite.py puts this into every struct, which remains an aggregate.
#define MSL_STRUCT(S) \
  S() = default;      \
  MSL_COPIES(S)
// ... and this where a struct declares constructors.
#define MSL_COPIES(S)             \
  S(const S&) = default;          \
  S(const constant S&) = default; \
  thread S& operator=(S) thread;  \
  device S& operator=(S) device;  \
  threadgroup S& operator=(S) threadgroup;

// The storage of a `threadgroup` variable of a kernel.
template <typename T>
threadgroup T& msl_threadgroup_variable();

// ---- scalars and vectors ------------------------------------------------------------------------

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;

// float -> bfloat must be spelled out, bfloat -> float is implicit.
struct bfloat {
  MSL_STRUCT(bfloat)
  explicit bfloat(float);
  explicit bfloat(half);
  explicit bfloat(bool);
  explicit bfloat(int);
  explicit bfloat(uint);
  explicit bfloat(short);
  explicit bfloat(ushort);
  operator float() const;
  operator float() const constant;

 private:
  ushort bits;
};
bfloat operator+(bfloat, bfloat);
bfloat operator-(bfloat, bfloat);
bfloat operator*(bfloat, bfloat);
bfloat operator/(bfloat, bfloat);
bfloat operator-(bfloat);

#define MSL_BFLOATS(N, members) \
  struct bfloat##N {            \
    MSL_STRUCT(bfloat##N)       \
    bfloat members;             \
  };                            \
  template <typename... Parts>  \
  bfloat##N make_bfloat##N(Parts...);
#define MSL_MEMBERS(...) __VA_ARGS__
MSL_BFLOATS(2, MSL_MEMBERS(x, y))
MSL_BFLOATS(3, MSL_MEMBERS(x, y, z))
MSL_BFLOATS(4, MSL_MEMBERS(x, y, z, w))

// OpenCL has no constructor syntax for vectors: rewrite.py turns float4(…) into make_float4(…).
#define MSL_VECTOR(T, N)                              \
  typedef T T##N __attribute__((ext_vector_type(N))); \
  template <typename... Parts>                        \
  T##N make_##T##N(Parts...);
#define MSL_VECTORS(T) MSL_VECTOR(T, 2) MSL_VECTOR(T, 3) MSL_VECTOR(T, 4)
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(half)
MSL_VECTORS(float)

template <typename To, typename From>
To as_type(From) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of the same size");
  return To();
}

// ---- the standard library -----------------------------------------------------------------------

namespace metal {

#define MSL_FLOATING(declare)                                                                 \
  declare(float) declare(float2) declare(float3) declare(float4) declare(half) declare(half2) \
      declare(half3) declare(half4)

#define MSL_MATH(T) \
  T abs(T);         \
  T ceil(T);        \
  T cos(T);         \
  T cosh(T);        \
  T exp(T);         \
  T exp2(T);        \
  T fabs(T);        \
  T floor(T);       \
  T log(T);         \
  T log2(T);        \
  T rint(T);        \
  T round(T);       \
  T rsqrt(T);       \
  T saturate(T);    \
  T sin(T);         \
  T sinh(T);        \
  T sqrt(T);        \
  T tanh(T);        \
  T trunc(T);       \
  T copysign(T, T); \
  T divide(T, T);   \
  T fmax(T, T);     \
  T fmin(T, T);     \
  T max(T, T);      \
  T min(T, T);      \
  T pow(T, T);      \
  T clamp(T, T, T); \
  T fma(T, T, T);
MSL_FLOATING(MSL_MATH)

#define MSL_INTEGER_MATH(T) \
  T clamp(T, T, T);         \
  T max(T, T);              \
  T min(T, T);
MSL_INTEGER_MATH(int)
MSL_INTEGER_MATH(uint)
MSL_INTEGER_MATH(long)
MSL_INTEGER_MATH(ulong)
MSL_INTEGER_MATH(short)
MSL_INTEGER_MATH(ushort)

float dot(float2, float2);
float dot(float3, float3);
float dot(float4, float4);
bool isnan(float);
bool isinf(float);
bool isfinite(float);
template <typename T>
T select(T, T, bool);

// Single precision, with and without the error bounds of IEEE 754.
#define MSL_PRECISION         \
  float cos(float);           \
  float divide(float, float); \
  float exp(float);           \
  float exp2(float);          \
  float log(float);           \
  float log2(float);          \
  float pow(float, float);    \
  float rsqrt(float);         \
  float sin(float);           \
  float sqrt(float);          \
  float tanh(float);
namespace precise {
MSL_PRECISION
}
namespace fast {
MSL_PRECISION
}

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define MSL_SIMD(T)               \
  T simd_broadcast_first(T);      \
  T simd_max(T);                  \
  T simd_min(T);                  \
  T simd_prefix_exclusive_sum(T); \
  T simd_prefix_inclusive_sum(T); \
  T simd_product(T);              \
  T simd_sum(T);                  \
  T simd_broadcast(T, ushort);    \
  T simd_shuffle(T, ushort);      \
  T simd_shuffle_down(T, ushort); \
  T simd_shuffle_up(T, ushort);   \
  T simd_shuffle_xor(T, ushort);
MSL_FLOATING(MSL_SIMD)
MSL_SIMD(int)
MSL_SIMD(uint)
MSL_SIMD(short)
MSL_SIMD(ushort)
bool simd_all(bool);
bool simd_any(bool);

template <typename A, typename B>
struct is_same {
  enum { value = 0 };
};
template <typename A>
struct is_same<A, A> {
  enum { value = 1 };
};
template <bool kChoice, typename A, typename B>
struct conditional {
  typedef A type;
};
template <typename A, typename B>
struct conditional<false, A, B> {
  typedef B type;
};

}  // namespace metal
