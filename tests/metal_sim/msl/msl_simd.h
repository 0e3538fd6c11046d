// Barriers and simdgroup functions. The defaulted arguments record where the shader called them.
#pragma once

#include "kernel_abi.h"

#define SIM_CALL_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// The lanes' values lie in the executor's memory, which kernels may not touch.
#define SIM_UNCHECKED __attribute__((no_sanitize("thread")))

namespace sim {

constexpr int kSimdLanes = static_cast<int>(kSimdWidth);

template <class T>
SIM_UNCHECKED inline T lane_value(const unsigned char* slots, int lane) {
  return *reinterpret_cast<const T*>(slots + lane * kSimdSlotSize);
}

template <class T>
METAL_FUNC const unsigned char* exchange(const T& value, Site site) {
  static_assert(sizeof(T) <= kSimdSlotSize, "simd function on a type wider than 16 bytes");
  return simd_exchange(&value, sizeof(T), site);
}

// A fixed tree, so every lane gets the same bits. Hardware may use another order.
template <class T, class Combine>
SIM_UNCHECKED inline T simd_reduce(T value, Combine combine, Site site) {
  const unsigned char* slots = exchange(value, site);
  T values[kSimdLanes];
  for (int i = 0; i < kSimdLanes; ++i) values[i] = lane_value<T>(slots, i);
  for (int width = kSimdLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) values[i] = combine(values[i], values[i + width]);
  }
  return values[0];
}

template <class T>
METAL_FUNC T simd_read(T value, int lane, Site site) {
  const unsigned char* slots = exchange(value, site);
  if (lane < 0 || lane >= kSimdLanes) fail("simd function reads a lane outside 0..31", site);
  return lane_value<T>(slots, lane);
}

}  // namespace sim

namespace metal {

METAL_FUNC void threadgroup_barrier(mem_flags flags, SIM_CALL_SITE) {
  sim::threadgroup_barrier(static_cast<uint>(flags), {file, line});
}
METAL_FUNC void simdgroup_barrier(mem_flags flags, SIM_CALL_SITE) {
  sim::simdgroup_barrier(static_cast<uint>(flags), {file, line});
}

template <class T>
METAL_FUNC T simd_sum(T value, SIM_CALL_SITE) {
  return sim::simd_reduce(value, [](T a, T b) SIM_UNCHECKED { return static_cast<T>(a + b); },
                          {file, line});
}
template <class T>
METAL_FUNC T simd_product(T value, SIM_CALL_SITE) {
  return sim::simd_reduce(value, [](T a, T b) SIM_UNCHECKED { return static_cast<T>(a * b); },
                          {file, line});
}
template <class T>
METAL_FUNC T simd_max(T value, SIM_CALL_SITE) {
  return sim::simd_reduce(value, [](T a, T b) SIM_UNCHECKED { return max(a, b); }, {file, line});
}
template <class T>
METAL_FUNC T simd_min(T value, SIM_CALL_SITE) {
  return sim::simd_reduce(value, [](T a, T b) SIM_UNCHECKED { return min(a, b); }, {file, line});
}
METAL_FUNC bool simd_any(bool value, SIM_CALL_SITE) {
  return sim::simd_reduce(value, [](bool a, bool b) SIM_UNCHECKED { return a || b; }, {file, line});
}
METAL_FUNC bool simd_all(bool value, SIM_CALL_SITE) {
  return sim::simd_reduce(value, [](bool a, bool b) SIM_UNCHECKED { return a && b; }, {file, line});
}

template <class T>
METAL_FUNC T simd_broadcast(T value, ushort lane, SIM_CALL_SITE) {
  return sim::simd_read(value, lane, {file, line});
}
template <class T>
METAL_FUNC T simd_broadcast_first(T value, SIM_CALL_SITE) {
  return sim::simd_read(value, 0, {file, line});
}
template <class T>
METAL_FUNC T simd_shuffle(T value, ushort lane, SIM_CALL_SITE) {
  return sim::simd_read(value, lane, {file, line});
}
template <class T>
METAL_FUNC T simd_shuffle_xor(T value, ushort mask, SIM_CALL_SITE) {
  return sim::simd_read(value, static_cast<int>(sim::simd_lane() ^ mask), {file, line});
}
// Lanes that would read past an end keep their own value.
template <class T>
METAL_FUNC T simd_shuffle_down(T value, ushort delta, SIM_CALL_SITE) {
  const int own = static_cast<int>(sim::simd_lane());
  const int source = own + delta;
  return sim::simd_read(value, source < sim::kSimdLanes ? source : own, {file, line});
}
template <class T>
METAL_FUNC T simd_shuffle_up(T value, ushort delta, SIM_CALL_SITE) {
  const int own = static_cast<int>(sim::simd_lane());
  const int source = own - delta;
  return sim::simd_read(value, source >= 0 ? source : own, {file, line});
}
template <class T>
METAL_FUNC T simd_prefix_inclusive_sum(T value, SIM_CALL_SITE) {
  const unsigned char* slots = sim::exchange(value, {file, line});
  T sum = sim::lane_value<T>(slots, 0);
  for (int i = 1; i <= static_cast<int>(sim::simd_lane()); ++i) {
    sum = static_cast<T>(sum + sim::lane_value<T>(slots, i));
  }
  return sum;
}
METAL_FUNC bool simd_is_first(SIM_CALL_SITE) {
  (void)file, (void)line;
  return sim::simd_lane() == 0;
}

}  // namespace metal

#undef SIM_UNCHECKED
#undef SIM_CALL_SITE
