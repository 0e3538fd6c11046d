#include <metal_stdlib>
using namespace metal;

struct Counter {
  uint n;
  METAL_FUNC void add() { ++n; }
};

kernel void count(device Counter* counters [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  // error: no matching member function for call to 'add'
  counters[i].add();
}
