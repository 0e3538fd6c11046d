#include <metal_stdlib>
using namespace metal;

METAL_FUNC float sum(float v, uint lane) {
  // error: variable cannot be declared in local address space
  threadgroup float partial[32];
  partial[lane] = v;
  return partial[0];
}

kernel void total(device float* x [[buffer(0)]], uint i [[thread_index_in_simdgroup]]) {
  x[i] = sum(x[i], i);
}
