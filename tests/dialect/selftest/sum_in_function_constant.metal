#include <metal_stdlib>

enum Constant { kFirst = 3 };

// error: the argument of [[function_constant]] must be a number or a name, not an expression
constant bool second [[function_constant(kFirst + 1)]];

kernel void nothing(device float* x [[buffer(0)]]) {
  x[0] = second ? 1.0f : 0.0f;
}
