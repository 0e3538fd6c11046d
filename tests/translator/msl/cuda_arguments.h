// What a kernel made by cuda_backend.py is given, for both sides: included into a namespace.
#pragma once

constexpr int kMaxBuffers = 31, kMaxThreadgroupBuffers = 8, kMaxBytes = 3072;

// Of a dispatch. What is bound as bytes, at SIM_BYTES_BUFFER, lies where a kernel reads constants.
struct Arguments {
  void* buffers[kMaxBuffers];
  unsigned int threadgroup_offsets[kMaxThreadgroupBuffers];
  alignas(16) unsigned char bytes[kMaxBytes];
};
