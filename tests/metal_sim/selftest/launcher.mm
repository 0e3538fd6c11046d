// A stand-in for a product: dispatches any kernel of any source, well or badly.
#include <ATen/core/Tensor.h>
#include <ATen/mps/MPSDevice.h>
#include <ATen/mps/MPSStream.h>
#include <torch/library.h>

#include <map>
#include <string>
#include <vector>

#import <Metal/Metal.h>

#include "../mps_device/run_on.h"

namespace {

using at::IntArrayRef;
using at::Tensor;

id<MTLDevice> device() {
  return at::mps::MPSDevice::getInstance()->device();
}

NSString* string(c10::string_view text) {
  return [NSString stringWithUTF8String:std::string(text).c_str()];
}

const char* message(NSError* error) {
  return error ? error.localizedDescription.UTF8String : "?";
}

id<MTLBuffer> buffer_of(const Tensor& t) {
  return __builtin_bit_cast(id<MTLBuffer>, t.storage().data());
}

id<MTLLibrary> library_of(const std::string& source, bool fast_math) {
  static std::map<std::pair<std::string, bool>, id<MTLLibrary>> libraries;
  id<MTLLibrary>& library = libraries[{source, fast_math}];
  if (!library) {
    MTLCompileOptions* options = [[[MTLCompileOptions alloc] init] autorelease];
    options.languageVersion = MTLLanguageVersion3_1;
    options.mathMode = fast_math ? MTLMathModeFast : MTLMathModeSafe;
    NSError* error = nil;
    library = [device() newLibraryWithSource:string(source) options:options error:&error];
    TORCH_CHECK(library, "library: ", message(error));
  }
  return library;
}

MTLSize size_of(IntArrayRef extent) {
  TORCH_CHECK(extent.size() == 3, "three extents, please");
  return MTLSizeMake(extent[0], extent[1], extent[2]);
}

// constants: triples of index, MTLDataType and value.
id<MTLComputePipelineState> pipeline_of(const std::string& source, c10::string_view name,
                                        at::ArrayRef<double> constants, bool fast_math) {
  MTLFunctionConstantValues* values = [[[MTLFunctionConstantValues alloc] init] autorelease];
  for (size_t i = 0; i + 2 < constants.size(); i += 3) {
    const auto index = static_cast<NSUInteger>(constants[i]);
    const auto type = static_cast<MTLDataType>(constants[i + 1]);
    const float as_float = static_cast<float>(constants[i + 2]);
    const int64_t as_integer = static_cast<int64_t>(constants[i + 2]);
    const void* value =
        type == MTLDataTypeFloat ? static_cast<const void*>(&as_float) : &as_integer;
    [values setConstantValue:value type:type atIndex:index];
  }
  NSError* error = nil;
  id<MTLFunction> function = [library_of(source, fast_math) newFunctionWithName:string(name)
                                                                 constantValues:values
                                                                          error:&error];
  TORCH_CHECK(function, "function: ", message(error));
  id<MTLComputePipelineState> pipeline = [device() newComputePipelineStateWithFunction:function
                                                                                 error:&error];
  [function release];
  TORCH_CHECK(pipeline, "pipeline: ", message(error));
  return [pipeline autorelease];
}

void on_stream(void (^body)(id<MTLComputeCommandEncoder>)) {
  at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
  sim::run_on(stream->queue(), ^{
    @autoreleasepool {
      body(stream->commandEncoder());
    }
  });
}

// Buffers (None: nil) go to indices 0, 1, ...; offsets (in bytes) replace those of the tensors;
// bytes, a CPU tensor, goes to the index after the buffers. `again` asks for a second dispatch on
// the same encoder for which "all", the "buffers", the "pipeline" or "nothing" is set once more.
void dispatch(std::string source, c10::string_view kernel,
              const c10::List<std::optional<Tensor>>& buffers, IntArrayRef grid, IntArrayRef group,
              bool grid_in_threads, IntArrayRef offsets, const std::optional<Tensor>& bytes,
              int64_t threadgroup_memory, at::ArrayRef<double> constants, bool fast_math,
              c10::string_view again) {
  on_stream(^(id<MTLComputeCommandEncoder> encoder) {
    const auto run = [&](bool sets_pipeline, bool sets_buffers) {
      if (sets_pipeline) {
        [encoder setComputePipelineState:pipeline_of(source, kernel, constants, fast_math)];
      }
      for (size_t i = 0; i < buffers.size() && sets_buffers; ++i) {
        const std::optional<Tensor> t = buffers.get(i);
        const NSUInteger start =
            !offsets.empty() ? offsets[i] : (t ? t->storage_offset() * t->element_size() : 0);
        [encoder setBuffer:t ? buffer_of(*t) : nil offset:start atIndex:i];
      }
      if (bytes.has_value() && sets_buffers) {
        [encoder setBytes:bytes->const_data_ptr() length:bytes->nbytes() atIndex:buffers.size()];
      }
      if (threadgroup_memory != 0) {
        [encoder setThreadgroupMemoryLength:threadgroup_memory atIndex:0];
      }
      if (grid_in_threads) {
        [encoder dispatchThreads:size_of(grid) threadsPerThreadgroup:size_of(group)];
      } else {
        [encoder dispatchThreadgroups:size_of(grid) threadsPerThreadgroup:size_of(group)];
      }
    };
    run(true, true);
    if (!again.empty()) {
      run(again == "all" || again == "pipeline", again == "all" || again == "buffers");
    }
  });
}

// maxTotalThreadsPerThreadgroup, threadExecutionWidth and staticThreadgroupMemoryLength.
std::vector<int64_t> pipeline_limits(std::string source, c10::string_view kernel) {
  @autoreleasepool {
    id<MTLComputePipelineState> pipeline = pipeline_of(source, kernel, {}, false);
    return {static_cast<int64_t>(pipeline.maxTotalThreadsPerThreadgroup),
            static_cast<int64_t>(pipeline.threadExecutionWidth),
            static_cast<int64_t>(pipeline.staticThreadgroupMemoryLength)};
  }
}

std::vector<std::string> function_names(std::string source) {
  @autoreleasepool {
    std::vector<std::string> names;
    for (NSString* name in library_of(source, false).functionNames)
      names.push_back(name.UTF8String);
    return names;
  }
}

// Things that a product must not do.
void misuse(c10::string_view what) {
  at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
  if (what == "commit") {
    [stream->commandBuffer() commit];
  } else if (what == "wait") {
    [stream->commandBuffer() waitUntilCompleted];
  } else if (what == "end_encoding") {
    [stream->commandEncoder() endEncoding];
  } else if (what == "nil_pipeline") {
    [stream->commandEncoder() setComputePipelineState:(id _Nonnull)nil];
  } else if (what == "no_pipeline") {
    [stream->commandEncoder() dispatchThreads:MTLSizeMake(1, 1, 1)
                        threadsPerThreadgroup:MTLSizeMake(1, 1, 1)];
  } else if (what == "long_bytes") {
    const std::vector<char> bytes(4097);
    [stream->commandEncoder() setBytes:bytes.data() length:bytes.size() atIndex:0];
  } else if (what == "buffer_past_end") {
    [stream->commandEncoder() setBuffer:nil offset:0 atIndex:31];
  } else if (what == "buffers_at_once") {
    const id<MTLBuffer> buffers[2] = {};
    const NSUInteger offsets[2] = {};
    [stream->commandEncoder() setBuffers:buffers offsets:offsets withRange:NSMakeRange(0, 2)];
  } else if (what == "buffer_offset") {
    [stream->commandEncoder() setBufferOffset:0 atIndex:0];
  } else if (what == "use_after_end") {
    @autoreleasepool {
      id<MTLCommandQueue> queue = [device() newCommandQueue];
      id<MTLCommandBuffer> commands = [queue commandBuffer];
      id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
      [encoder endEncoding];
      [encoder setThreadgroupMemoryLength:16 atIndex:0];
      [commands commit];
      const std::string error = message(commands.error);
      [queue release];
      TORCH_CHECK(false, error);
    }
  } else if (what == "over_release") {
    id<MTLBuffer> buffer = [device() newBufferWithLength:16 options:0];
    [buffer release];
    [buffer release];
  } else if (what == "use_after_release") {
    id<MTLBuffer> buffer = [device() newBufferWithLength:16 options:0];
    [buffer release];
    (void)[buffer contents];
  } else if (what == "leak") {
    [device() newBufferWithLength:16 options:0];
  } else if (what == "autorelease_without_pool") {
    [[device() newBufferWithLength:16 options:0] autorelease];
  } else if (what == "reenter_queue") {
    dispatch_sync(stream->queue(), ^{
      dispatch_sync(stream->queue(), ^{
                    });
    });
  } else if (what == "throw_out_of_block") {
    dispatch_sync(stream->queue(), ^{
      throw std::runtime_error("lost");
    });
  } else if (what == "throw_with_rethrow") {
    sim::run_on(stream->queue(), ^{
      TORCH_CHECK(false, "carried out of the block");
    });
  } else {
    TORCH_CHECK(false, "unknown misuse ", what);
  }
}

}  // namespace

TORCH_LIBRARY(metal_selftest, library) {
  library.def(
      "dispatch(str source, str kernel, Tensor?[] buffers, int[] grid, int[] group, *, "
      "bool grid_in_threads=False, int[] offsets=[], Tensor? bytes=None, int threadgroup_memory=0, "
      "float[] constants=[], bool fast_math=False, str again='') -> ()");
  library.def("pipeline_limits(str source, str kernel) -> int[]", pipeline_limits);
  library.def("function_names(str source) -> str[]", function_names);
  library.def("misuse(str what) -> ()", misuse);
  library.impl("dispatch", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(dispatch));
}
