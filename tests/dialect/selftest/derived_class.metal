#include <metal_stdlib>

using namespace metal;

struct Base {
  float v;
};

// error: Metal has no derived classes ('Derived')
struct Derived : Base {
  float w;
};

[[kernel]] void derived_class(device float* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  Derived d;
  d.w = 1.0f;
  out[i] = d.w;
}
