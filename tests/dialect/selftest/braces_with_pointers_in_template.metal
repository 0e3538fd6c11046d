#include <metal_stdlib>

template <typename T>
struct Row {
  device T* row;
  uint dim;
};

template <typename T>
kernel void nothing(device T* x [[buffer(0)]], device T* y [[buffer(1)]]) {
  device T* both[2] = {x, y};
  // error: an initializer list of 'Row<float>', which holds pointers
  const Row<T> row = {both[0], 1};
  row.row[0] = T(0.0f);
}
template [[host_name("nothing")]] [[kernel]] decltype(nothing<float>) nothing<float>;
