#include <metal_stdlib>

enum Buffer { kInputs = 0, kOutputs = 2 };

kernel void sum(device const float* a [[buffer(kInputs)]],
                // error: the argument of [[buffer]] must be a number or a name, not an expression
                device const float* b [[buffer(kInputs + 1)]],
                device float* out [[buffer(kOutputs)]]) {
  out[0] = a[0] + b[0];
}
