// From a code address of a compiled shader to the shader's file and line.
#pragma once

#include <string>

namespace sim {

// "shaders/x.metal:12", or "an unknown line" without debug information. Slow: runs addr2line.
std::string source_location(const void* return_address);

}  // namespace sim
