#include <metal_stdlib>
using namespace metal;

METAL_FUNC float first_of(device const float* values) {
  return values[0];
}

struct Sum {
  enum { kInputs = 1 };
  template <typename Row, typename Values = typename Row::Values>
  static METAL_FUNC Values first(Row row) {
    // error: no matching function for call to 'first_of'
    return first_of(row.scratch) + first_of(row.inputs[0]);
  }
};

struct Row {
  typedef float Values;
  device const float* inputs[1];
  threadgroup const float* scratch;
};

template <typename Op>
[[kernel]] void op(device float* x [[buffer(0)]], device const float* in [[buffer(1)]]) {
  threadgroup float scratch[1];
  Row row;
  row.inputs[0] = in;
  row.scratch = scratch;
  x[0] = Op::first(row);
}
template [[host_name("sum")]] [[kernel]] decltype(op<Sum>) op<Sum>;
