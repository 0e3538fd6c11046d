#include <metal_stdlib>
using namespace metal;

template <typename T>
[[kernel]] void broken(device T* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  // error: member reference base type '__global float'
  x[i] = x[i].missing;
}
template [[host_name("broken")]] [[kernel]] decltype(broken<float>) broken<float>;
