#include <metal_stdlib>
using namespace metal;

template <typename T>
[[kernel]] void copied(device const void* x [[buffer(0)]], device void* out [[buffer(1)]]) {
  // error: casts away qualifiers
  constant const T* from = static_cast<constant const T*>(x);
  static_cast<device T*>(out)[0] = from[0];
}
template [[host_name("copied")]] [[kernel]] decltype(copied<float>) copied<float>;
