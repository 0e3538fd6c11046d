#include <metal_stdlib>
using namespace metal;

template <typename T>
[[kernel]] void cast(device const T* x [[buffer(0)]], device T* y [[buffer(1)]]) {
  // error: reinterpret_cast from 'const __global float *'
  y[0] = *reinterpret_cast<constant const T*>(x);
}
template [[host_name("cast_float")]] [[kernel]] decltype(cast<float>) cast<float>;
