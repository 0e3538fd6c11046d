#include <metal_stdlib>

struct Rows {
  device float* rows[2];
  uint dim;
};

kernel void nothing(device float* x [[buffer(0)]], device float* y [[buffer(1)]]) {
  device float* both[2] = {x, y};  // an array
  Rows rows;
  // error: an initializer list of 'Rows', which holds pointers
  rows = {{both[0], both[1]}, 1};
  rows.rows[0][0] = 0.0f;
}
