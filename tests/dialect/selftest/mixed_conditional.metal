#include <metal_stdlib>
using namespace metal;

struct Value {
  float v;
  METAL_FUNC Value halved() const { return {v * 0.5f}; }
};

kernel void halves(device float* x [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float scratch[32];
  const Value value = {x[i]};
  const Value half_of_some = i > 4 ? value.halved() : value;
  // error: incompatible operand types ('__global float *' and '__local float *')
  device float* out = i > 4 ? x : scratch;
  out[i] = half_of_some.v;
}
