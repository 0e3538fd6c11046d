#include <metal_stdlib>
using namespace metal;

kernel void zeroed(device const void* x [[buffer(0)]]) {
  // error: casts away qualifiers
  static_cast<device float*>(x)[0] = 0.0f;
}
