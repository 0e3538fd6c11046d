// Command queues, command buffers and encoders: record now, run at commit.
#include <Block.h>

#include <array>
#include <cstring>

#include "foundation.h"
#include "metal_objects.h"
#include "stats.h"

namespace {

constexpr size_t kMaxInlineBytes = 4096;
thread_local int stream_scopes = 0;

sim::UInt3 to_uint3(MTLSize size) {
  return {static_cast<uint32_t>(size.width), static_cast<uint32_t>(size.height),
          static_cast<uint32_t>(size.depth)};
}

}  // namespace

std::atomic<bool> sim::only_counts = false;

sim::StreamScope::StreamScope() {
  ++stream_scopes;
}
sim::StreamScope::~StreamScope() {
  --stream_scopes;
}
bool sim::StreamScope::is_active() {
  return stream_scopes > 0;
}

// ---- encoder ------------------------------------------------------------------------------------

struct sim::EncoderState {
  struct Slot {
    BindingState state = BindingState::unbound;
    SimBuffer* buffer = nil;
    NSUInteger offset = 0;
    std::shared_ptr<std::vector<char>> bytes;
  };
  SimPipeline* pipeline = nil;
  std::array<Slot, kMaxBuffers> slots;
  std::array<size_t, kMaxBuffers> threadgroup_lengths{};
  bool ended = false;
};

@implementation SimComputeEncoder

- (instancetype)initWithCommandBuffer:(SimCommandBuffer*)commandBuffer {
  _commandBuffer = [commandBuffer retain];
  _state = new sim::EncoderState;
  return self;
}

- (void)dealloc {
  for (auto& slot : _state->slots) [slot.buffer release];
  [_state->pipeline release];
  delete _state;
  [_commandBuffer release];
  [super dealloc];
}

- (void)reject:(const std::string&)text {
  [_commandBuffer recordError:"compute command encoder: " + text];
}

- (BOOL)isUsableFor:(const char*)action {
  if (!_state->ended) return YES;
  [self reject:std::string(action) + " after endEncoding"];
  return NO;
}

- (BOOL)isIndex:(NSUInteger)index validFor:(const char*)action {
  if (index < sim::kMaxBuffers) return YES;
  [self reject:std::string(action) + ": index " + std::to_string(index) + " is above 30"];
  return NO;
}

- (void)setComputePipelineState:(id<MTLComputePipelineState>)pipeline {
  if (!sim::is_heard()) return;
  if (![self isUsableFor:"setComputePipelineState"]) return;
  if (!pipeline) {
    [self reject:"setComputePipelineState: the pipeline is nil"];
    return;
  }
  [pipeline retain];
  [_state->pipeline release];
  _state->pipeline = static_cast<SimPipeline*>(pipeline);
}

- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index {
  if (!sim::is_heard()) return;
  if (![self isUsableFor:"setBuffer"] || ![self isIndex:index validFor:"setBuffer"]) return;
  if (buffer && offset >= [buffer length]) {
    [self reject:"setBuffer: offset " + std::to_string(offset) +
                 " (in bytes) is not inside the buffer of " + std::to_string([buffer length]) +
                 " bytes at index " + std::to_string(index)];
    return;
  }
  auto& slot = _state->slots[index];
  [buffer retain];
  [slot.buffer release];
  slot.buffer = static_cast<SimBuffer*>(buffer);
  slot.offset = offset;
  slot.bytes.reset();
  slot.state = buffer ? sim::BindingState::bound : sim::BindingState::unbound;
}

// PyTorch's graph capture records calls of setBuffer:offset:atIndex: and knows no other that binds
// buffers.
- (void)setBufferOffset:(NSUInteger)offset atIndex:(NSUInteger)index {
  [self reject:"setBufferOffset:atIndex: is not captured; use setBuffer:offset:atIndex:"];
}

- (void)setBuffers:(const id<MTLBuffer>[])buffers
           offsets:(const NSUInteger[])offsets
         withRange:(NSRange)range {
  [self reject:"setBuffers:offsets:withRange: is not captured; use setBuffer:offset:atIndex:"];
}

- (void)setBytes:(const void*)bytes length:(NSUInteger)length atIndex:(NSUInteger)index {
  if (!sim::is_heard()) return;
  if (![self isUsableFor:"setBytes"] || ![self isIndex:index validFor:"setBytes"]) return;
  if (length == 0 || length > kMaxInlineBytes) {
    [self reject:"setBytes takes 1 to 4096 bytes, not " + std::to_string(length)];
    return;
  }
  auto& slot = _state->slots[index];
  [slot.buffer release];
  slot.buffer = nil;
  slot.offset = 0;
  const char* begin = static_cast<const char*>(bytes);
  slot.bytes = std::make_shared<std::vector<char>>(begin, begin + length);
  slot.state = sim::BindingState::bound;
}

- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index {
  if (![self isUsableFor:"setThreadgroupMemoryLength"]) return;
  if (![self isIndex:index validFor:"setThreadgroupMemoryLength"]) return;
  if (length % 16 != 0) {
    [self reject:"setThreadgroupMemoryLength: " + std::to_string(length) +
                 " is not a multiple of 16"];
    return;
  }
  _state->threadgroup_lengths[index] = length;
}

- (void)recordThreadgroups:(MTLSize)threadgroups
                   threads:(MTLSize)threads
     threadsPerThreadgroup:(MTLSize)threadsPerThreadgroup {
  if (!sim::is_heard() || ![self isUsableFor:"dispatch"]) return;
  if (!_state->pipeline) {
    [self reject:"dispatch without a pipeline state (none was set for this dispatch)"];
    return;
  }
  ++sim::stats().dispatches;
  SimFunction* function = _state->pipeline->_function;
  sim::Command command;
  command.pipeline = [_state->pipeline retain];
  command.dispatch.library = function->_library->_library;
  command.dispatch.kernel = function->_kernel;
  command.dispatch.constants = function->_constants;
  command.dispatch.threadgroup_lengths = _state->threadgroup_lengths;
  command.dispatch.threadgroups = to_uint3(threadgroups);
  command.dispatch.threads = to_uint3(threads);
  command.dispatch.threads_per_threadgroup = to_uint3(threadsPerThreadgroup);
  for (int i = 0; i < sim::kMaxBuffers; ++i) {
    auto& slot = _state->slots[i];
    auto& binding = command.dispatch.buffers[i];
    binding.state = slot.state;
    if (slot.state == sim::BindingState::unbound) continue;
    if (slot.buffer) {
      binding.contents = static_cast<char*>([slot.buffer contents]);
      binding.length = [slot.buffer length];
      binding.offset = slot.offset;
      command.buffers.push_back([slot.buffer retain]);
    } else {
      binding.contents = slot.bytes->data();
      binding.length = slot.bytes->size();
      command.inline_bytes.push_back(slot.bytes);
    }
    // What Metal would still have bound at the next dispatch is somebody else's by then.
    slot.state = sim::BindingState::stale;
  }
  [_state->pipeline release];
  _state->pipeline = nil;
  _commandBuffer->_commands->push_back(std::move(command));
}

- (void)dispatchThreadgroups:(MTLSize)threadgroups
       threadsPerThreadgroup:(MTLSize)threadsPerThreadgroup {
  [self recordThreadgroups:threadgroups
                    threads:MTLSizeMake(0, 0, 0)
      threadsPerThreadgroup:threadsPerThreadgroup];
}

- (void)dispatchThreads:(MTLSize)threads threadsPerThreadgroup:(MTLSize)threadsPerThreadgroup {
  [self recordThreadgroups:MTLSizeMake(0, 0, 0)
                    threads:threads
      threadsPerThreadgroup:threadsPerThreadgroup];
}

- (void)memoryBarrierWithScope:(MTLBarrierScope)scope {
  // Dispatches run one after the other anyway.
  [self isUsableFor:"memoryBarrierWithScope"];
}

- (void)endEncoding {
  if (![_commandBuffer allows:"endEncoding"]) return;
  if ([self isUsableFor:"endEncoding"]) _state->ended = true;
}

- (void)insertDebugSignpost:(NSString*)string {
}
- (void)pushDebugGroup:(NSString*)string {
}
- (void)popDebugGroup {
}

@end

// ---- command buffer -----------------------------------------------------------------------------

@implementation SimCommandBuffer

- (instancetype)initWithQueue:(id<MTLCommandQueue>)queue {
  _queue = [queue retain];
  _commands = new std::vector<sim::Command>;
  _handlers = new std::vector<MTLCommandBufferHandler>;
  _error = new std::string;
  return self;
}

- (void)releaseCommands {
  for (auto& command : *_commands) {
    for (id buffer : command.buffers) [buffer release];
    [command.pipeline release];
  }
  _commands->clear();
}

- (void)dealloc {
  [self releaseCommands];
  for (auto handler : *_handlers) Block_release(handler);
  delete _commands;
  delete _handlers;
  delete _error;
  [_queue release];
  [super dealloc];
}

- (void)recordError:(const std::string&)text {
  if (_error->empty()) *_error = text;
}

- (BOOL)allows:(const char*)action {
  if (!_belongs_to_stream || sim::StreamScope::is_active()) return YES;
  ++sim::stats().outside_commits;
  [self recordError:std::string(action) + " on the command buffer of PyTorch's stream: only the " +
                    "stream may do that"];
  return NO;
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoder {
  return [[[SimComputeEncoder alloc] initWithCommandBuffer:self] autorelease];
}

- (void)commit {
  if (![self allows:"commit"]) return;
  if (_status != MTLCommandBufferStatusNotEnqueued) {
    [self recordError:"a command buffer was committed twice"];
    return;
  }
  for (auto& command : *_commands) {
    if (!_error->empty()) break;  // as on a GPU, nothing after a fault runs
    try {
      sim::execute(command.dispatch);
    } catch (const std::exception& failure) {
      *_error = failure.what();
    }
  }
  [self releaseCommands];
  _status = _error->empty() ? MTLCommandBufferStatusCompleted : MTLCommandBufferStatusError;
  for (auto handler : *_handlers) handler(self);
}

- (void)enqueue {
}
- (void)waitUntilScheduled {
  [self allows:"waitUntilScheduled"];
}
- (void)waitUntilCompleted {
  [self allows:"waitUntilCompleted"];
}
- (void)addScheduledHandler:(MTLCommandBufferHandler)handler {
  [self addCompletedHandler:handler];
}
- (void)addCompletedHandler:(MTLCommandBufferHandler)handler {
  _handlers->push_back(Block_copy(handler));
}
- (id<MTLCommandQueue>)commandQueue {
  return _queue;
}
- (MTLCommandBufferStatus)status {
  return _status;
}
- (NSError*)error {
  return _error->empty() ? nil : sim::make_error("MTLCommandBufferErrorDomain", *_error);
}

@end

// ---- command queue, MPSCommandBuffer ------------------------------------------------------------

@implementation SimCommandQueue
- (id<MTLCommandBuffer>)commandBuffer {
  return [[[SimCommandBuffer alloc] initWithQueue:self] autorelease];
}
- (id<MTLCommandBuffer>)commandBufferWithUnretainedReferences {
  return [self commandBuffer];
}
@end

@implementation MPSCommandBuffer
+ (instancetype)commandBufferFromCommandQueue:(id<MTLCommandQueue>)queue {
  return [self commandBufferWithCommandBuffer:[queue commandBuffer]];
}
+ (instancetype)commandBufferWithCommandBuffer:(id<MTLCommandBuffer>)commandBuffer {
  SimMPSCommandBuffer* result = [[[SimMPSCommandBuffer alloc] init] autorelease];
  result->_commandBuffer = [(SimCommandBuffer*)commandBuffer retain];
  result->_commandBuffer->_belongs_to_stream = YES;
  return result;
}
- (id<MTLCommandBuffer>)commandBuffer {
  return ((SimMPSCommandBuffer*)self)->_commandBuffer;
}
- (id<MTLCommandBuffer>)rootCommandBuffer {
  return self.commandBuffer;
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoder {
  return [self.commandBuffer computeCommandEncoder];
}
- (void)commit {
  [self.commandBuffer commit];
}
- (void)commitAndContinue {
  [self.commandBuffer commit];
}
- (void)enqueue {
}
- (void)waitUntilScheduled {
  [self.commandBuffer waitUntilScheduled];
}
- (void)waitUntilCompleted {
  [self.commandBuffer waitUntilCompleted];
}
- (void)addScheduledHandler:(MTLCommandBufferHandler)handler {
  [self.commandBuffer addScheduledHandler:handler];
}
- (void)addCompletedHandler:(MTLCommandBufferHandler)handler {
  [self.commandBuffer addCompletedHandler:handler];
}
- (id<MTLCommandQueue>)commandQueue {
  return [self.commandBuffer commandQueue];
}
- (id<MTLDevice>)device {
  return self.commandBuffer.device;
}
- (MTLCommandBufferStatus)status {
  return self.commandBuffer.status;
}
- (NSError*)error {
  return self.commandBuffer.error;
}
- (NSString*)label {
  return self.commandBuffer.label;
}
- (void)setLabel:(NSString*)label {
  self.commandBuffer.label = label;
}
@end

@implementation SimMPSCommandBuffer
- (void)dealloc {
  [_commandBuffer release];
  [super dealloc];
}
@end
