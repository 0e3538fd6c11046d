#include <metal_stdlib>
// error: 'vector' file not found
#include <vector>
