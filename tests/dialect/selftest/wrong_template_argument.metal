#include <metal_stdlib>
using namespace metal;

struct Doubled {
  static METAL_FUNC float of(float x) { return x + x; }
};

template <template <typename> class Op, typename T>
[[kernel]] void map(device T* x [[buffer(0)]]) {
  x[0] = Op<T>::of(x[0]);
}
// error: could not be resolved
template [[host_name("map")]] [[kernel]] decltype(map<Doubled, float>) map<Doubled, float>;
