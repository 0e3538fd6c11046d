#include <metal_stdlib>
using namespace metal;

kernel void first(device const void* x [[buffer(0)]], device float* out [[buffer(1)]]) {
  // error: cast '' points or refers to memory without naming its address space
  out[0] = reinterpret_cast<const float*>(x)[0];
}
