// What the parts of the simulated device share.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

namespace sim {

inline c10::Device mps_device() {
  return c10::Device(c10::DeviceType::MPS, 0);
}

// The data pointer of a storage is its id<MTLBuffer>, as in PyTorch.
c10::Allocator* mps_allocator();
// Host address of a storage's bytes, or null for an empty one.
void* host_address(const c10::StorageImpl& storage);

// Runs everything that is encoded; throws what went wrong in it.
void synchronize();

// The CPU generator that stands in for one of the device; the default one when undefined.
at::Generator cpu_generator(const std::optional<at::Generator>& generator);

}  // namespace sim
