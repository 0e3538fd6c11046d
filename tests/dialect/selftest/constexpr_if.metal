#include <metal_stdlib>
using namespace metal;

template <typename T, bool kTwice>
[[kernel]] void scale(device T* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  // error: constexpr if is incompatible with C++ standards before C++17
  if constexpr (kTwice) {
    x[i] = T(2.0f * float(x[i]));
  }
}
template [[host_name("scale")]] [[kernel]] decltype(scale<float, true>) scale<float, true>;
