// Built without ARC.
#include "pipeline.h"

#include <ATen/mps/MPSDevice.h>
#include <Foundation/Foundation.h>
#include <Metal/Metal.h>
#include <c10/util/Exception.h>
#include <dispatch/dispatch.h>

#include <chrono>
#include <cstring>

#include "embedded_shaders.h"
#include "once.h"

namespace mlxnorm::mps {
namespace {

// Libraries and pipelines live as long as the process: PyTorch's device does too.

std::string text_of(NSError* error) {
  return error == nil ? "no reason given" : [[error localizedDescription] UTF8String];
}

id<MTLDevice> mps_device() {
  return at::mps::MPSDevice::getInstance()->device();
}

const EmbeddedLibrary& embedded_library(Op op) {
  for (const EmbeddedLibrary& embedded : kEmbeddedLibraries) {
    if (std::strcmp(embedded.name, op_name(op)) == 0) {
      return embedded;
    }
  }
  TORCH_CHECK(false, "mlxnorm: no Metal library is embedded for ", op_name(op));
}

// All kernels of an op; nil when there is no metallib, or none that this system takes.
id<MTLLibrary> load_metallib(Op op) {
  const EmbeddedLibrary& embedded = embedded_library(op);
  if (embedded.metallib_size == 0) {
    return nil;
  }
  dispatch_data_t data = dispatch_data_create(embedded.metallib, embedded.metallib_size, nullptr,
                                              DISPATCH_DATA_DESTRUCTOR_DEFAULT);
  NSError* error = nil;
  id<MTLLibrary> library = [mps_device() newLibraryWithData:data error:&error];
  dispatch_release(data);
  if (library == nil) {
    TORCH_WARN_ONCE("mlxnorm: the precompiled Metal library was refused (", text_of(error),
                    "), compiling its source instead");
  }
  return library;
}

// The one kernel that a key names.
id<MTLLibrary> compile_source(const PipelineKey& key) {
  const std::string source =
      embedded_library(key.op).source + instantiation(key.op, key.plan, key.dtype);
  MTLCompileOptions* options = [[MTLCompileOptions alloc] init];
  options.languageVersion = MTLLanguageVersion3_1;
  options.fastMathEnabled = NO;  // fast math assumes that there are no NaNs
  NSError* error = nil;
  id<MTLLibrary> library =
      [mps_device() newLibraryWithSource:[NSString stringWithUTF8String:source.c_str()]
                                 options:options
                                   error:&error];
  [options release];
  TORCH_CHECK(library != nil, "mlxnorm: Metal source of ",
              function_name(key.op, key.plan, key.dtype), ": ", text_of(error));
  return library;
}

struct Library {
  id<MTLLibrary> library;
  const char* origin;
};

Library library_with(const PipelineKey& key, const std::string& function) {
  static auto* metallibs = new Once<Op, id<MTLLibrary>>;
  static auto* compiled = new Once<std::string, id<MTLLibrary>>;
  if (id<MTLLibrary> library = metallibs->get(key.op, [&] { return load_metallib(key.op); })) {
    return {library, "metallib"};
  }
  return {compiled->get(function, [&] { return compile_source(key); }), "source"};
}

MTLFunctionConstantValues* constant_values(const PipelineKey& key) {
  MTLFunctionConstantValues* values = [[MTLFunctionConstantValues alloc] init];
  for (const Constant& constant : constants_of(key)) {
    const bool truth = constant.value != 0;
    if (constant.is_bool) {
      [values setConstantValue:&truth type:MTLDataTypeBool atIndex:NSUInteger(constant.index)];
    } else {
      [values setConstantValue:&constant.value
                          type:MTLDataTypeUInt
                       atIndex:NSUInteger(constant.index)];
    }
  }
  return values;
}

id<MTLComputePipelineState> make_pipeline(const PipelineKey& key) {
  const auto start = std::chrono::steady_clock::now();
  const std::string name = function_name(key.op, key.plan, key.dtype);
  const Library from = library_with(key, name);
  NSError* error = nil;
  MTLFunctionConstantValues* constants = constant_values(key);
  id<MTLFunction> function =
      [from.library newFunctionWithName:[NSString stringWithUTF8String:name.c_str()]
                         constantValues:constants
                                  error:&error];
  [constants release];
  TORCH_CHECK(function != nil, "mlxnorm: Metal function ", name, ": ", text_of(error));
  id<MTLComputePipelineState> state = [mps_device() newComputePipelineStateWithFunction:function
                                                                                  error:&error];
  [function release];
  TORCH_CHECK(state != nil, "mlxnorm: Metal pipeline ", name, ": ", text_of(error));
  const NSUInteger threads = [state maxTotalThreadsPerThreadgroup];
  const NSUInteger needed = is_of_columns(key.plan.kernel) ? kMaxColumnThreads : kMaxThreads;
  if (threads < needed) {
    [state release];
    TORCH_CHECK(false, "mlxnorm: this GPU runs ", name, " with at most ", threads,
                " threads per threadgroup, ", needed, " are needed");
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  add_compiled({name, from.origin, seconds.count()});
  return state;
}

}  // namespace

Pipeline pipeline(const PipelineKey& key) {
  static auto* pipelines = new Once<uint64_t, Pipeline>;
  return pipelines->get(packed(key), [&] {
    @autoreleasepool {
      return __builtin_bit_cast(Pipeline, make_pipeline(key));
    }
  });
}

}  // namespace mlxnorm::mps
