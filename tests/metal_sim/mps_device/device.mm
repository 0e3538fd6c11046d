// Registers the "mps" device: allocator, guard, random generators and hooks.
#include "device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/mps/MPSDevice.h>
#include <ATen/mps/MPSStream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstring>

namespace sim {
namespace {

// ---- allocator ----------------------------------------------------------------------------------

class MPSAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, nullptr, &release, mps_device()};
    id<MTLDevice> device = at::mps::MPSDevice::getInstance()->device();
    id<MTLBuffer> buffer = [device newBufferWithLength:size options:MTLResourceStorageModeShared];
    TORCH_CHECK_WITH(OutOfMemoryError, buffer, "MPS backend out of memory (simulated): ", size,
                     " bytes");
    return {buffer, buffer, &release, mps_device()};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* destination, const void* source, size_t count) const override {
    synchronize();
    std::memcpy([(id<MTLBuffer>)destination contents],
                [(id<MTLBuffer>)const_cast<void*>(source) contents], count);
  }

 private:
  static void release(void* buffer) { [(id<MTLBuffer>)buffer release]; }
};

MPSAllocator allocator;
REGISTER_ALLOCATOR(c10::DeviceType::MPS, &allocator);

// ---- guard: one device, one stream --------------------------------------------------------------

struct MPSGuard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream only_stream() { return c10::Stream(c10::Stream::DEFAULT, mps_device()); }

  c10::DeviceType type() const override { return c10::DeviceType::MPS; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Device exchangeDevice(c10::Device) const override { return mps_device(); }
  c10::Device getDevice() const override { return mps_device(); }
  c10::Stream getStream(c10::Device) const noexcept override { return only_stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return only_stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return only_stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return only_stream(); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { synchronize(); }
  void synchronizeDevice(c10::DeviceIndex) const override { synchronize(); }
};
C10_REGISTER_GUARD_IMPL(MPS, MPSGuard);

// ---- random numbers: a CPU generator in the device's clothes ------------------------------------

class MPSGenerator final : public c10::GeneratorImpl {
 public:
  explicit MPSGenerator(at::Generator cpu)
      : GeneratorImpl(mps_device(), c10::DispatchKeySet(c10::DispatchKey::MPS)),
        cpu_(std::move(cpu)) {}

  static c10::DeviceType device_type() { return c10::DeviceType::MPS; }
  at::Generator& cpu() { return cpu_; }

  void set_current_seed(uint64_t seed) override { cpu_.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { cpu_.set_offset(offset); }
  uint64_t get_offset() const override { return cpu_.get_offset(); }
  uint64_t current_seed() const override { return cpu_.current_seed(); }
  uint64_t seed() override { return cpu_.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    cpu_.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu_.unsafeGetGeneratorImpl()->get_state();
  }

 private:
  MPSGenerator* clone_impl() const override { return new MPSGenerator(cpu_.clone()); }

  at::Generator cpu_;
};

const at::Generator& default_generator() {
  static const at::Generator generator =
      at::make_generator<MPSGenerator>(at::detail::createCPUGenerator());
  return generator;
}

}  // namespace

// ---- hooks --------------------------------------------------------------------------------------

struct MPSHooks final : at::MPSHooksInterface {
  // PyTorch 2.8 passes an argument, later versions none.
  template <typename... Arguments>
  explicit MPSHooks(const Arguments&...) {}

  void init() const override {}
  bool hasMPS() const override { return true; }
  // A process has one accelerator. CUDA builds of PyTorch, which is what PyPI has, have chosen.
  bool isBuilt() const override { return !at::detail::getCUDAHooks().isBuilt(); }
  bool isAvailable() const override { return true; }
  bool isOnMacOSorNewer(unsigned, unsigned) const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return mps_device(); }
  at::Allocator* getMPSDeviceAllocator() const override { return &allocator; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return default_generator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<MPSGenerator>(at::detail::createCPUGenerator());
  }
  void deviceSynchronize() const override { synchronize(); }
  void commitStream() const override { synchronize(); }
  void* getCommandBuffer() const override {
    return at::mps::getDefaultMPSStream()->commandBuffer();
  }
  void* getDispatchQueue() const override { return at::mps::getDefaultMPSStream()->queue(); }
  void emptyCache() const override {}
  size_t getCurrentAllocatedMemory() const override { return 0; }
  size_t getDriverAllocatedMemory() const override { return 0; }
  size_t getRecommendedMaxMemory() const override {
    return at::mps::MPSDevice::getInstance()->device().maxBufferLength;
  }
  void setMemoryFraction(double) const override {}
};

c10::Allocator* mps_allocator() {
  return &allocator;
}

void* host_address(const c10::StorageImpl& storage) {
  return [(id<MTLBuffer>)const_cast<void*>(storage.data()) contents];
}

void synchronize() {
  at::mps::getDefaultMPSStream()->synchronize(at::mps::SyncType::COMMIT_AND_WAIT);
}

at::Generator cpu_generator(const std::optional<at::Generator>& generator) {
  const at::Generator& given =
      generator.has_value() && generator->defined() ? *generator : default_generator();
  if (given.device().is_cpu()) return given;
  return given.get<MPSGenerator>()->cpu();
}

}  // namespace sim

namespace at {
using SimMPSHooks = sim::MPSHooks;
C10_REGISTER_CLASS(MPSHooksRegistry, MPSHooks, SimMPSHooks);
}  // namespace at
