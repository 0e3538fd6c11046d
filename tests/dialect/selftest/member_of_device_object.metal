#include <metal_stdlib>
using namespace metal;

struct Counter {
  uint n;
  METAL_FUNC void add() { ++n; }
};

kernel void count(device Counter* counters [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  // error: with an expression of type '__global Counter'
  counters[i].add();
}
