#include <metal_stdlib>
using namespace metal;

struct Value {
  float v;
  METAL_FUNC Value halved() const { return {v * 0.5f}; }
};

kernel void halves(device float* x [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float scratch[32];
  const Value value = {x[i]};
  // error: incompatible operand types ('__global float *' and '__local float *')
  device float* out = i > 4 ? x : scratch;
  out[i] = value.halved().v;
}
