// vec<T, N> with MSL's sizes and alignments, swizzles, conversions and element-wise operators.
#pragma once

namespace metal {

template <class T, int N>
struct vec;

// `v.xz`: a view of some components, living in the union of its vector.
template <class T, int... I>
struct Swizzle {
  METAL_FUNC operator vec<T, sizeof...(I)>() const {
    const T* components = reinterpret_cast<const T*>(this);
    return vec<T, sizeof...(I)>(components[I]...);
  }
  METAL_FUNC Swizzle& operator=(const vec<T, sizeof...(I)>& value) {
    T* components = reinterpret_cast<T*>(this);
    int next = 0;
    ((components[I] = value[next++]), ...);
    return *this;
  }
  METAL_FUNC Swizzle& operator=(const Swizzle& other) {
    return *this = static_cast<vec<T, sizeof...(I)>>(other);
  }
};

// The copies are written out because the compiler checks the alignment of `v[i]` only where it is
// bound to a reference, which a trivial copy does not do (and the swizzles delete the assignment).
#ifndef SIM_COPY_VECTOR
#define SIM_COPY_VECTOR(to, from) __builtin_memcpy(to, from, sizeof(to))
#endif
// Two floats become halves or bfloats by one instruction, as each would by its own.
#ifdef __CUDACC_RTC__
#define SIM_CONVERT_PAIR(N)                                                     \
  if constexpr (N == 2 && sim::is_small_float<T> && std::is_same_v<U, float>) { \
    sim::convert_pair(components, other.components);                            \
    return;                                                                     \
  }
#else
#define SIM_CONVERT_PAIR(N)
#endif
#define SIM_VECTOR_COMMON(N)                                                     \
  vec() = default;                                                               \
  METAL_FUNC vec(const vec& other) {                                             \
    SIM_COPY_VECTOR(components, other.components);                               \
  }                                                                              \
  METAL_FUNC vec& operator=(const vec& other) {                                  \
    SIM_COPY_VECTOR(components, other.components);                               \
    return *this;                                                                \
  }                                                                              \
  template <class U, class = std::enable_if_t<sim::is_scalar<U>>>                \
  METAL_FUNC explicit vec(U value) {                                             \
    for (int i = 0; i < N; ++i) components[i] = static_cast<T>(value);           \
  }                                                                              \
  template <class U, class = std::enable_if_t<!std::is_same_v<U, T>>>            \
  METAL_FUNC explicit vec(const vec<U, N>& other) {                              \
    SIM_CONVERT_PAIR(N)                                                          \
    for (int i = 0; i < N; ++i) {                                                \
      if constexpr (sim::is_small_float<T>) {                                    \
        components[i] = static_cast<T>(static_cast<float>(other.components[i])); \
      } else {                                                                   \
        components[i] = static_cast<T>(other.components[i]);                     \
      }                                                                          \
    }                                                                            \
  }                                                                              \
  METAL_FUNC T& operator[](uint i) {                                             \
    return components[i];                                                        \
  }                                                                              \
  METAL_FUNC const T& operator[](uint i) const {                                 \
    return components[i];                                                        \
  }

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T components[2];
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    Swizzle<T, 0, 0> xx;
    Swizzle<T, 0, 1> xy;
    Swizzle<T, 1, 0> yx;
    Swizzle<T, 1, 1> yy;
  };
  SIM_VECTOR_COMMON(2)
  METAL_FUNC vec(T a, T b) : x(a), y(b) {}
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T components[3];
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    Swizzle<T, 0, 0> xx;
    Swizzle<T, 0, 1> xy;
    Swizzle<T, 0, 2> xz;
    Swizzle<T, 1, 0> yx;
    Swizzle<T, 1, 1> yy;
    Swizzle<T, 1, 2> yz;
    Swizzle<T, 2, 0> zx;
    Swizzle<T, 2, 1> zy;
    Swizzle<T, 2, 2> zz;
    Swizzle<T, 0, 1, 2> xyz;
    Swizzle<T, 2, 1, 0> zyx;
  };
  SIM_VECTOR_COMMON(3)
  METAL_FUNC vec(T a, T b, T c) : x(a), y(b), z(c) {}
  METAL_FUNC vec(const vec<T, 2>& ab, T c) : x(ab.x), y(ab.y), z(c) {}
  METAL_FUNC vec(T a, const vec<T, 2>& bc) : x(a), y(bc.x), z(bc.y) {}
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T components[4];
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    Swizzle<T, 0, 0> xx;
    Swizzle<T, 0, 1> xy;
    Swizzle<T, 0, 2> xz;
    Swizzle<T, 0, 3> xw;
    Swizzle<T, 1, 0> yx;
    Swizzle<T, 1, 1> yy;
    Swizzle<T, 1, 2> yz;
    Swizzle<T, 1, 3> yw;
    Swizzle<T, 2, 0> zx;
    Swizzle<T, 2, 1> zy;
    Swizzle<T, 2, 2> zz;
    Swizzle<T, 2, 3> zw;
    Swizzle<T, 3, 0> wx;
    Swizzle<T, 3, 1> wy;
    Swizzle<T, 3, 2> wz;
    Swizzle<T, 3, 3> ww;
    Swizzle<T, 0, 1, 2> xyz;
    Swizzle<T, 1, 2, 3> yzw;
    Swizzle<T, 3, 2, 1, 0> wzyx;
  };
  SIM_VECTOR_COMMON(4)
  METAL_FUNC vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
  METAL_FUNC vec(const vec<T, 2>& ab, const vec<T, 2>& cd) : x(ab.x), y(ab.y), z(cd.x), w(cd.y) {}
  METAL_FUNC vec(const vec<T, 2>& ab, T c, T d) : x(ab.x), y(ab.y), z(c), w(d) {}
  METAL_FUNC vec(T a, T b, const vec<T, 2>& cd) : x(a), y(b), z(cd.x), w(cd.y) {}
  METAL_FUNC vec(const vec<T, 3>& abc, T d) : x(abc.x), y(abc.y), z(abc.z), w(d) {}
  METAL_FUNC vec(T a, const vec<T, 3>& bcd) : x(a), y(bcd.x), z(bcd.y), w(bcd.z) {}
};
#undef SIM_VECTOR_COMMON
#undef SIM_COPY_VECTOR

// A scalar operand is converted to the element type first, as MSL does.
#define SIM_VECTOR_OPERATOR(op)                                                   \
  template <class T, int N>                                                       \
  METAL_FUNC vec<T, N> operator op(const vec<T, N>& a, const vec<T, N>& b) {      \
    vec<T, N> result;                                                             \
    for (int i = 0; i < N; ++i) result[i] = static_cast<T>(a[i] op b[i]);         \
    return result;                                                                \
  }                                                                               \
  template <class T, int N, class S, class = std::enable_if_t<sim::is_scalar<S>>> \
  METAL_FUNC vec<T, N> operator op(const vec<T, N>& a, S b) {                     \
    return a op vec<T, N>(static_cast<T>(b));                                     \
  }                                                                               \
  template <class T, int N, class S, class = std::enable_if_t<sim::is_scalar<S>>> \
  METAL_FUNC vec<T, N> operator op(S a, const vec<T, N>& b) {                     \
    return vec<T, N>(static_cast<T>(a)) op b;                                     \
  }                                                                               \
  template <class T, int N, class S>                                              \
  METAL_FUNC vec<T, N>& operator op## = (vec<T, N> & a, const S& b) {             \
    return a = a op b;                                                            \
  }
SIM_VECTOR_OPERATOR(+)
SIM_VECTOR_OPERATOR(-)
SIM_VECTOR_OPERATOR(*)
SIM_VECTOR_OPERATOR(/)
SIM_VECTOR_OPERATOR(%)
SIM_VECTOR_OPERATOR(&)
SIM_VECTOR_OPERATOR(|)
SIM_VECTOR_OPERATOR(^)
SIM_VECTOR_OPERATOR(<<)
SIM_VECTOR_OPERATOR(>>)
#undef SIM_VECTOR_OPERATOR

#define SIM_VECTOR_COMPARISON(op)                                               \
  template <class T, int N>                                                     \
  METAL_FUNC vec<bool, N> operator op(const vec<T, N>& a, const vec<T, N>& b) { \
    vec<bool, N> result;                                                        \
    for (int i = 0; i < N; ++i) result[i] = a[i] op b[i];                       \
    return result;                                                              \
  }
SIM_VECTOR_COMPARISON(==)
SIM_VECTOR_COMPARISON(!=)
SIM_VECTOR_COMPARISON(<)
SIM_VECTOR_COMPARISON(>)
SIM_VECTOR_COMPARISON(<=)
SIM_VECTOR_COMPARISON(>=)
#undef SIM_VECTOR_COMPARISON

template <class T, int N>
METAL_FUNC vec<T, N> operator-(const vec<T, N>& a) {
  vec<T, N> result;
  for (int i = 0; i < N; ++i) result[i] = static_cast<T>(-a[i]);
  return result;
}

template <class T, int N>
METAL_FUNC vec<T, N> operator~(const vec<T, N>& a) {
  vec<T, N> result;
  for (int i = 0; i < N; ++i) result[i] = static_cast<T>(~a[i]);
  return result;
}

}  // namespace metal

#define SIM_VECTOR_NAMES(T)      \
  using T##2 = metal::vec<T, 2>; \
  using T##3 = metal::vec<T, 3>; \
  using T##4 = metal::vec<T, 4>;
SIM_VECTOR_NAMES(bool)
SIM_VECTOR_NAMES(char)
SIM_VECTOR_NAMES(uchar)
SIM_VECTOR_NAMES(short)
SIM_VECTOR_NAMES(ushort)
SIM_VECTOR_NAMES(int)
SIM_VECTOR_NAMES(uint)
SIM_VECTOR_NAMES(long)
SIM_VECTOR_NAMES(ulong)
SIM_VECTOR_NAMES(half)
SIM_VECTOR_NAMES(bfloat)
SIM_VECTOR_NAMES(float)
#undef SIM_VECTOR_NAMES

template <class To, class From>
METAL_FUNC To as_type(From from) {
  return sim::bit_cast<To>(from);
}
