#include <metal_stdlib>

struct Value {
  float v;
  METAL_FUNC Value halved() const { return {v * 0.5f}; }
};

template <typename T>
METAL_FUNC T halved_if(T value, bool wanted) {
  // error: incompatible operand types ('Value' and '__private Value')
  return wanted ? value.halved() : value;
}

kernel void halves(device float* x [[buffer(0)]], uint i [[thread_position_in_threadgroup]]) {
  const Value value = {x[i]};
  x[i] = halved_if(value, i > 4).v;
}
