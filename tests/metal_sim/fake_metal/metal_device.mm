// The device and its buffers.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "dispatch_queue.h"
#include "foundation.h"
#include "metal_library.h"
#include "metal_objects.h"
#include "stats.h"

namespace {

// Apple allows threadgroups of 1024 threads on every GPU that PyTorch supports.
constexpr NSUInteger kMaxThreads = sim::kMaxThreadsPerThreadgroup;
constexpr NSUInteger kMaxBufferLength = NSUInteger{1} << 40;

// New memory is filled with NaN, so that output nobody wrote shows. Of large buffers only the ends
// are, to leave the rest unmapped.
constexpr size_t kPoisonedBytes = 1 << 20;

SimDevice* the_device() {
  static SimDevice* device = [[SimDevice alloc] init];
  return device;
}

}  // namespace

sim::Stats& sim::stats() {
  static Stats instance;
  return instance;
}

@implementation SimObject
- (NSString*)label {
  return _label;
}
- (void)setLabel:(NSString*)label {
  [label retain];
  [_label release];
  _label = label;
}
- (id<MTLDevice>)device {
  return the_device();
}
- (void)dealloc {
  [_label release];
  [super dealloc];
}
@end

@implementation SimBuffer

- (instancetype)initWithLength:(NSUInteger)length {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t body = (length + page - 1) / page * page;
  // Accesses of kernels are checked one by one; the page behind the data is for host code.
  void* memory = mmap(nullptr, body + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    [self release];
    return nil;
  }
  _contents = static_cast<char*>(memory);
  _length = length;
  _mapped = body + page;
  mprotect(_contents + body, page, PROT_NONE);
  const size_t head = std::min<size_t>(length, kPoisonedBytes);
  std::memset(_contents, 0xff, head);
  const size_t tail = std::min<size_t>(length - head, page);
  std::memset(_contents + length - tail, 0xff, tail);
  ++sim::stats().buffers;
  return self;
}

- (void)dealloc {
  if (_contents) munmap(_contents, _mapped);
  [super dealloc];
}

- (void*)contents {
  return _contents;
}
- (NSUInteger)length {
  return _length;
}
- (MTLStorageMode)storageMode {
  return MTLStorageModeShared;
}

@end

@implementation SimDevice

- (NSString*)name {
  return @"Simulated Metal device";
}
- (uint64_t)registryID {
  return 1;
}
- (MTLSize)maxThreadsPerThreadgroup {
  return MTLSizeMake(kMaxThreads, kMaxThreads, kMaxThreads);
}
- (NSUInteger)maxThreadgroupMemoryLength {
  return sim::kMaxThreadgroupMemory;
}
- (NSUInteger)maxBufferLength {
  return kMaxBufferLength;
}
- (uint64_t)recommendedMaxWorkingSetSize {
  return kMaxBufferLength;
}
- (BOOL)hasUnifiedMemory {
  return YES;
}
- (BOOL)supportsFamily:(MTLGPUFamily)family {
  return YES;
}

- (id<MTLCommandQueue>)newCommandQueue {
  return [[SimCommandQueue alloc] init];
}

- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
  if (length == 0 || length > kMaxBufferLength) return nil;
  return [[SimBuffer alloc] initWithLength:length];
}

- (id<MTLBuffer>)newBufferWithBytes:(const void*)bytes
                             length:(NSUInteger)length
                            options:(MTLResourceOptions)options {
  id<MTLBuffer> buffer = [self newBufferWithLength:length options:options];
  if (buffer) std::memcpy([buffer contents], bytes, length);
  return buffer;
}

- (id<MTLLibrary>)newLibraryWithSource:(NSString*)source
                               options:(MTLCompileOptions*)options
                                 error:(NSError**)error {
  return sim::make_library(sim::to_string(source), options, error);
}

- (id<MTLLibrary>)newLibraryWithData:(dispatch_data_t)data error:(NSError**)error {
  return sim::load_metallib(sim::bytes_of(data), error);
}

- (id<MTLLibrary>)newLibraryWithURL:(NSURL*)url error:(NSError**)error {
  if (error) {
    *error = sim::make_error("MTLLibraryErrorDomain",
                             "newLibraryWithURL is not supported by the simulator");
  }
  return nil;
}

- (id<MTLComputePipelineState>)newComputePipelineStateWithFunction:(id<MTLFunction>)function
                                                             error:(NSError**)error {
  return sim::make_pipeline(static_cast<SimFunction*>(function), error);
}

- (id<MTLSharedEvent>)newSharedEvent {
  return nil;
}

@end

id<MTLDevice> MTLCreateSystemDefaultDevice(void) {
  return [the_device() retain];
}
