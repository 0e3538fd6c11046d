// What CUDA made by cuda_backend.py is compiled with, by NVRTC: MSL's types and functions, and how
// a kernel gets its arguments.
#pragma once

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;

// Of <type_traits>, which NVRTC does not bring along, what MSL's headers use.
namespace std {
template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
};
using true_type = integral_constant<bool, true>;
using false_type = integral_constant<bool, false>;
template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;
template <class T, class... Others>
constexpr bool is_one_of = (is_same_v<T, Others> || ...);
template <class T>
constexpr bool is_floating_point_v = is_one_of<T, float, double>;
template <class T>
constexpr bool is_integral_v =
    is_one_of<T, bool, char, signed char, unsigned char, short, unsigned short, int, unsigned int,
              long, unsigned long, long long, unsigned long long>;
template <class T>
constexpr bool is_arithmetic_v = is_integral_v<T> || is_floating_point_v<T>;
template <class T>
constexpr bool is_signed_v = T(-1) < T(0);
template <bool condition, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool condition, class T = void>
using enable_if_t = typename enable_if<condition, T>::type;
template <bool condition, class T, class F>
struct conditional {
  typedef T type;
};
template <class T, class F>
struct conditional<false, T, F> {
  typedef F type;
};
template <bool condition, class T, class F>
using conditional_t = typename conditional<condition, T, F>::type;
}  // namespace std

// All of a shader is in here: CUDA has a uint4 and others of its own.
namespace msl {

#include "msl_numbers.h"

namespace sim {

// A vector at once, whose elements may be of 16 bits.
template <int kBytes>
METAL_FUNC void copy_vector(void* to, const void* from) {
  if constexpr (kBytes == 16) {
    *static_cast<::uint4*>(to) = *static_cast<const ::uint4*>(from);
  } else if constexpr (kBytes == 8) {
    *static_cast<::uint2*>(to) = *static_cast<const ::uint2*>(from);
  } else if constexpr (kBytes == 4) {
    *static_cast<::uint1*>(to) = *static_cast<const ::uint1*>(from);
  } else {
    memcpy(to, from, kBytes);
  }
}

}  // namespace sim

#define SIM_COPY_VECTOR(to, from) sim::copy_vector<sizeof(to)>(to, from)
#include "msl_vectors.h"
#include "msl_math.h"

namespace sim {

// ---- arguments of the host ----------------------------------------------------------------------

#include "cuda_arguments.h"

struct pointer {
  const void* address;

  METAL_FUNC pointer(const Arguments& arguments, int index) {
    if (index == SIM_BYTES_BUFFER) {
      address = arguments.bytes;
    } else {
      address = arguments.buffers[index];
      __builtin_assume(address == nullptr || __isGlobal(address));
    }
  }
  template <class T>
  METAL_FUNC operator T*() const {
    return static_cast<T*>(const_cast<void*>(address));
  }
};

struct reference {
  const void* address;

  METAL_FUNC reference(const Arguments& arguments, int index)
      : address(pointer(arguments, index).address) {}
  template <class T>
  METAL_FUNC operator T&() const {
    return *static_cast<T*>(const_cast<void*>(address));
  }
};

extern __shared__::uint4 threadgroup_memory[];

struct threadgroup_pointer {
  unsigned char* address;

  METAL_FUNC threadgroup_pointer(const Arguments& arguments, int index)
      : address(reinterpret_cast<unsigned char*>(threadgroup_memory) +
                arguments.threadgroup_offsets[index]) {}
  template <class T>
  METAL_FUNC operator T*() const {
    return reinterpret_cast<T*>(address);
  }
};

// ---- function constants -------------------------------------------------------------------------

template <int index>
struct ConstantValue;

template <class T, int index>
constexpr METAL_FUNC T constant_value() {
  return static_cast<T>(ConstantValue<index>::value);
}

// All are.
#define is_function_constant_defined(constant) true

// ---- built-in arguments -------------------------------------------------------------------------

// As a number, uint2 or uint3.
struct Position {
  uint x, y, z;

  METAL_FUNC operator uint() const { return x; }
  METAL_FUNC operator ushort() const { return static_cast<ushort>(x); }
  template <class T>
  METAL_FUNC operator metal::vec<T, 2>() const {
    return {static_cast<T>(x), static_cast<T>(y)};
  }
  template <class T>
  METAL_FUNC operator metal::vec<T, 3>() const {
    return {static_cast<T>(x), static_cast<T>(y), static_cast<T>(z)};
  }
};

constexpr uint kSimdLanes = 32;

METAL_FUNC uint thread_index_in_threadgroup() {
  return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
}
METAL_FUNC uint thread_index_in_simdgroup() {
  return thread_index_in_threadgroup() % kSimdLanes;
}
METAL_FUNC uint simdgroup_index_in_threadgroup() {
  return thread_index_in_threadgroup() / kSimdLanes;
}
METAL_FUNC uint simdgroups_per_threadgroup() {
  return (blockDim.x * blockDim.y * blockDim.z + kSimdLanes - 1) / kSimdLanes;
}
METAL_FUNC uint dispatch_simdgroups_per_threadgroup() {
  return simdgroups_per_threadgroup();
}
METAL_FUNC uint threads_per_simdgroup() {
  return kSimdLanes;
}
METAL_FUNC uint thread_execution_width() {
  return kSimdLanes;
}
METAL_FUNC Position thread_position_in_threadgroup() {
  return {threadIdx.x, threadIdx.y, threadIdx.z};
}
METAL_FUNC Position threadgroup_position_in_grid() {
  return {blockIdx.x, blockIdx.y, blockIdx.z};
}
METAL_FUNC Position threadgroups_per_grid() {
  return {gridDim.x, gridDim.y, gridDim.z};
}
METAL_FUNC Position threads_per_threadgroup() {
  return {blockDim.x, blockDim.y, blockDim.z};
}
METAL_FUNC Position dispatch_threads_per_threadgroup() {
  return threads_per_threadgroup();
}
// All threadgroups are whole: the host dispatches threadgroups.
METAL_FUNC Position thread_position_in_grid() {
  return {blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,
          blockIdx.z * blockDim.z + threadIdx.z};
}
METAL_FUNC Position threads_per_grid() {
  return {gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z};
}

}  // namespace sim

// ---- functions of threads together --------------------------------------------------------------

namespace sim {

// A value as words that lanes exchange.
template <class T, class Exchange>
METAL_FUNC T exchange(T value, Exchange of) {
  constexpr int kWords = (sizeof(T) + 3) / 4;
  uint words[kWords] = {};
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    words[i] = of(words[i]);
  }
  memcpy(&value, words, sizeof(T));
  return value;
}

constexpr uint kAllLanes = 0xffffffffu;

// The same tree as the simulator's: equal bits in every lane, since a + b is b + a.
template <class T, class Combine>
METAL_FUNC T simd_reduce(T value, Combine combine) {
#pragma unroll
  for (int width = kSimdLanes / 2; width > 0; width /= 2) {
    value = combine(value, exchange(value, [width](uint word) {
                      return __shfl_xor_sync(kAllLanes, word, width);
                    }));
  }
  return value;
}

}  // namespace sim

namespace metal {

METAL_FUNC void threadgroup_barrier(mem_flags /*flags*/) {
  __syncthreads();
}
METAL_FUNC void simdgroup_barrier(mem_flags /*flags*/) {
  __syncwarp();
}

template <class T>
METAL_FUNC T simd_sum(T value) {
  return sim::simd_reduce(value, [](T a, T b) { return static_cast<T>(a + b); });
}
template <class T>
METAL_FUNC T simd_product(T value) {
  return sim::simd_reduce(value, [](T a, T b) { return static_cast<T>(a * b); });
}
template <class T>
METAL_FUNC T simd_max(T value) {
  return sim::simd_reduce(value, [](T a, T b) { return max(a, b); });
}
template <class T>
METAL_FUNC T simd_min(T value) {
  return sim::simd_reduce(value, [](T a, T b) { return min(a, b); });
}
METAL_FUNC bool simd_any(bool value) {
  return __any_sync(sim::kAllLanes, value) != 0;
}
METAL_FUNC bool simd_all(bool value) {
  return __all_sync(sim::kAllLanes, value) != 0;
}
template <class T>
METAL_FUNC T simd_shuffle(T value, ushort lane) {
  return sim::exchange(value,
                       [lane](uint word) { return __shfl_sync(sim::kAllLanes, word, lane); });
}
template <class T>
METAL_FUNC T simd_broadcast(T value, ushort lane) {
  return simd_shuffle(value, lane);
}
template <class T>
METAL_FUNC T simd_broadcast_first(T value) {
  return simd_shuffle(value, 0);
}
template <class T>
METAL_FUNC T simd_shuffle_xor(T value, ushort mask) {
  return sim::exchange(value,
                       [mask](uint word) { return __shfl_xor_sync(sim::kAllLanes, word, mask); });
}
// Lanes that would read past an end keep their own value.
template <class T>
METAL_FUNC T simd_shuffle_down(T value, ushort delta) {
  return sim::exchange(
      value, [delta](uint word) { return __shfl_down_sync(sim::kAllLanes, word, delta); });
}
template <class T>
METAL_FUNC T simd_shuffle_up(T value, ushort delta) {
  return sim::exchange(value,
                       [delta](uint word) { return __shfl_up_sync(sim::kAllLanes, word, delta); });
}
template <class T>
METAL_FUNC T simd_prefix_inclusive_sum(T value) {
  const uint own = sim::thread_index_in_simdgroup();
  T sum = simd_shuffle(value, 0);
  for (uint lane = 1; lane < sim::kSimdLanes; ++lane) {
    const T next = simd_shuffle(value, static_cast<ushort>(lane));
    sum = lane <= own ? static_cast<T>(sum + next) : sum;
  }
  return sum;
}
METAL_FUNC bool simd_is_first() {
  return sim::thread_index_in_simdgroup() == 0;
}

}  // namespace metal

}  // namespace msl
