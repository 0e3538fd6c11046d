// The simulator's Metal classes, as its own parts see them. Products see only <Metal/Metal.h>.
#pragma once

#import <Metal/Metal.h>
#import <MetalPerformanceShaders/MetalPerformanceShaders.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../executor/executor.h"

@interface SimObject : NSObject {
  NSString* _label;
}
@property(copy, atomic) NSString* label;
@property(readonly) id<MTLDevice> device;
@end

// Memory that is mapped on first touch, so a buffer may be larger than the machine's memory.
@interface SimBuffer : SimObject <MTLBuffer> {
  char* _contents;
  NSUInteger _length;
  size_t _mapped;
}
- (instancetype)initWithLength:(NSUInteger)length;
@end

@interface SimLibrary : SimObject <MTLLibrary> {
 @public
  const sim::ShaderLibrary* _library;
}
@end

@interface SimFunction : SimObject <MTLFunction> {
 @public
  SimLibrary* _library;
  const sim::Kernel* _kernel;
  sim::ConstantValues* _constants;
}
@end

@interface SimPipeline : SimObject <MTLComputePipelineState> {
 @public
  SimFunction* _function;
  size_t _static_threadgroup_memory;
}
@end

namespace sim {

// A recorded dispatch with everything that it keeps alive until it has run.
struct Command {
  Dispatch dispatch;
  id pipeline;
  std::vector<id> buffers;
  std::vector<std::shared_ptr<std::vector<char>>> inline_bytes;
};

}  // namespace sim

@interface SimCommandBuffer : SimObject <MTLCommandBuffer> {
 @public
  id<MTLCommandQueue> _queue;
  std::vector<sim::Command>* _commands;
  std::vector<MTLCommandBufferHandler>* _handlers;
  std::string* _error;
  MTLCommandBufferStatus _status;
  // PyTorch's stream owns it: nobody else may commit it or end its encoders.
  BOOL _belongs_to_stream;
}
- (instancetype)initWithQueue:(id<MTLCommandQueue>)queue;
// Remembers the first thing that went wrong.
- (void)recordError:(const std::string&)text;
// NO, and an error, when code other than the stream does what only the stream may do.
- (BOOL)allows:(const char*)action;
@end

namespace sim {

struct EncoderState;

// While one exists on this thread, the stream itself is at work on its command buffer.
class StreamScope {
 public:
  StreamScope();
  ~StreamScope();
  static bool is_active();
};

// How newLibraryWithSource: runs the translator, and what tests make it and newLibraryWithData: do.
class CompilerConfig {
 public:
  std::string python;      // interpreter
  std::string module_dir;  // folder of the metal_sim package's parent
  std::atomic<bool> refuses_metallibs{false};

  // Why every source is refused; empty: none is.
  std::string failure();
  void set_failure(const std::string& text);

 private:
  std::mutex failure_mutex_;
  std::string failure_;
};
CompilerConfig& compiler_config();

}  // namespace sim

@interface SimComputeEncoder : SimObject <MTLComputeCommandEncoder> {
  SimCommandBuffer* _commandBuffer;
  sim::EncoderState* _state;
}
- (instancetype)initWithCommandBuffer:(SimCommandBuffer*)commandBuffer;
@end

@interface SimCommandQueue : SimObject <MTLCommandQueue>
@end

// Made by +[MPSCommandBuffer commandBufferFromCommandQueue:]; passes everything on.
@interface SimMPSCommandBuffer : MPSCommandBuffer {
 @public
  SimCommandBuffer* _commandBuffer;
}
@end

@interface SimDevice : SimObject <MTLDevice>
@end
