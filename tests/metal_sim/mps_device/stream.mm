// PyTorch's MPSDevice and MPSStream over the fake Metal.
//
// The declarations are PyTorch's own (ATen/mps/MPSStream.h, MPSDevice.h), so a product compiles and
// links as it does on macOS. Only what a product may use is defined: the rest differs from one
// version of PyTorch to the next.
#include <ATen/mps/MPSDevice.h>
#include <ATen/mps/MPSStream.h>

#include <string>

#include "../fake_metal/dispatch_queue.h"
#include "../fake_metal/metal_objects.h"
#include "../fake_metal/stats.h"
#include "run_on.h"

namespace at::mps {

// ---- device -------------------------------------------------------------------------------------

MPSDevice* MPSDevice::_device = nullptr;

MPSDevice::MPSDevice() : _mtl_device(MTLCreateSystemDefaultDevice()) {}
MPSDevice::~MPSDevice() = default;

MPSDevice* MPSDevice::getInstance() {
  static MPSDevice* device = _device = new MPSDevice;
  return device;
}

// ---- stream -------------------------------------------------------------------------------------

MPSStream::MPSStream(Stream stream)
    : _stream(stream),
      _commandQueue([MPSDevice::getInstance()->device() newCommandQueue]),
      _serialQueue(dispatch_queue_create("metal gpu stream", DISPATCH_QUEUE_SERIAL)) {}

MPSStream::~MPSStream() = default;

MTLDevice_t MPSStream::device() const {
  return MPSDevice::getInstance()->device();
}

MPSCommandBuffer_t MPSStream::commandBuffer() {
  if (!_commandBuffer) {
    @autoreleasepool {
      _commandBuffer = [[MPSCommandBuffer commandBufferFromCommandQueue:_commandQueue] retain];
    }
  }
  return _commandBuffer;
}

MTLComputeCommandEncoder_t MPSStream::commandEncoder() {
  if (!_commandEncoder) {
    @autoreleasepool {
      _commandEncoder = [[commandBuffer() computeCommandEncoder] retain];
    }
  }
  return _commandEncoder;
}

void MPSStream::endKernelCoalescing() {
  if (!_commandEncoder) return;
  sim::StreamScope scope;
  [_commandEncoder endEncoding];
  [_commandEncoder release];
  _commandEncoder = nil;
}

// Runs everything that was encoded. What went wrong in it becomes an exception here.
void MPSStream::flush() {
  endKernelCoalescing();
  if (!_commandBuffer) return;
  std::string error;
  {
    sim::StreamScope scope;
    @autoreleasepool {
      [_commandBuffer commit];
      [_commandBuffer waitUntilCompleted];
      if (_commandBuffer.error) error = _commandBuffer.error.localizedDescription.UTF8String;
    }
  }
  [_commandBuffer release];
  _commandBuffer = nil;
  ++sim::stats().commits;
  TORCH_CHECK(error.empty(), "simulated Metal: ", error);
}

void MPSStream::synchronize(SyncType type) {
  if (type == SyncType::NONE) return;
  ++sim::stats().synchronizations;
  if (sim::is_running_on(_serialQueue)) {
    flush();
  } else {
    sim::run_on(_serialQueue, ^{
      flush();
    });
  }
}

void MPSStream::addCompletedHandler(MTLCommandBufferHandler handler) {
  [commandBuffer() addCompletedHandler:handler];
}

MPSStream* MPSStreamImpl::_stream = nullptr;

MPSStream* MPSStreamImpl::getInstance() {
  static MPSStream* stream = _stream =
      new MPSStream(Stream(Stream::UNSAFE, c10::Device(c10::DeviceType::MPS, 0), /*id=*/0));
  return stream;
}

MPSStream* getDefaultMPSStream() {
  return MPSStreamImpl::getInstance();
}
MPSStream* getCurrentMPSStream() {
  return getDefaultMPSStream();
}

}  // namespace at::mps

// What a call that encodes something costs at least, so many times: a block on the stream's queue.
extern "C" __attribute__((visibility("default"))) void metal_sim_encode_nothing(int64_t times) {
  at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
  for (int64_t i = 0; i < times; ++i) {
    dispatch_sync(stream->queue(), ^{
      @autoreleasepool {
        stream->commandEncoder();
      }
    });
  }
}
