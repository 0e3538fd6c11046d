// What a kernel made by cuda_backend.py is given, for both sides: included into a namespace.
#pragma once

constexpr int kMaxThreadgroupBuffers = 8;

// Of a dispatch. What is bound as bytes, at SIM_BYTES_BUFFER, lies where a kernel reads constants.
// SIM_BUFFERS and SIM_BYTES are as many as there are: a launch takes longer by all that it brings.
struct Arguments {
  void* buffers[SIM_BUFFERS];
  unsigned int threadgroup_offsets[kMaxThreadgroupBuffers];
  alignas(16) unsigned char bytes[SIM_BYTES];
};
