#include "metal.h"

#include <c10/util/Exception.h>
#include <dispatch/dispatch.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "embedded_shaders.h"

namespace mlxnorm::mps {
namespace {

// One library and all pipelines live as long as the process: PyTorch's device does too.
std::mutex cache_mutex;

std::string text_of(NSError* error) {
  return error == nil ? "no reason given" : [[error localizedDescription] UTF8String];
}

id<MTLLibrary> compile(id<MTLDevice> device, const EmbeddedLibrary& embedded) {
  NSError* error = nil;
  if (embedded.metallib_size > 0) {
    dispatch_data_t data = dispatch_data_create(embedded.metallib, embedded.metallib_size, nullptr,
                                                DISPATCH_DATA_DESTRUCTOR_DEFAULT);
    id<MTLLibrary> library = [device newLibraryWithData:data error:&error];
    dispatch_release(data);
    if (library != nil) {
      return library;
    }
    TORCH_WARN_ONCE("mlxnorm: the precompiled Metal library was refused (", text_of(error),
                    "), compiling its source instead");
  }
  MTLCompileOptions* options = [[MTLCompileOptions alloc] init];
  options.languageVersion = MTLLanguageVersion3_1;
  options.fastMathEnabled = NO;  // fast math assumes that there are no NaNs
  error = nil;
  id<MTLLibrary> library =
      [device newLibraryWithSource:[NSString stringWithUTF8String:embedded.source]
                           options:options
                             error:&error];
  [options release];
  TORCH_CHECK(library != nil, "mlxnorm: Metal library ", embedded.name, ": ", text_of(error));
  return library;
}

id<MTLLibrary> library_of(id<MTLDevice> device, const char* op) {
  static auto* libraries = new std::map<std::string, id<MTLLibrary>>;
  id<MTLLibrary>& library = (*libraries)[op];
  if (library == nil) {
    for (const EmbeddedLibrary& embedded : kEmbeddedLibraries) {
      if (std::strcmp(embedded.name, op) == 0) {
        library = compile(device, embedded);
      }
    }
    TORCH_CHECK(library != nil, "mlxnorm: no Metal library is embedded for ", op);
  }
  return library;
}

MTLFunctionConstantValues* constants_of(const PipelineKey& key) {
  const bool has_weight = key.weight != WeightType::none;
  MTLFunctionConstantValues* values = [[MTLFunctionConstantValues alloc] init];
  [values setConstantValue:&has_weight type:MTLDataTypeBool atIndex:kHasWeightConstant];
  [values setConstantValue:&key.round_before_weight
                      type:MTLDataTypeBool
                   atIndex:kRoundBeforeWeightConstant];
  [values setConstantValue:&key.plan.prefetch_weight
                      type:MTLDataTypeBool
                   atIndex:kPrefetchWeightConstant];
  [values setConstantValue:&key.plan.lanes_per_row
                      type:MTLDataTypeUInt
                   atIndex:kLanesPerRowConstant];
  return values;
}

id<MTLComputePipelineState> create_pipeline(const PipelineKey& key) {
  id<MTLDevice> device = at::mps::MPSDevice::getInstance()->device();
  const std::string name = function_name(key.op, key.plan, key.dtype, key.weight);
  NSError* error = nil;
  MTLFunctionConstantValues* constants = constants_of(key);
  id<MTLFunction> function =
      [library_of(device, key.op) newFunctionWithName:[NSString stringWithUTF8String:name.c_str()]
                                       constantValues:constants
                                                error:&error];
  [constants release];
  TORCH_CHECK(function != nil, "mlxnorm: Metal function ", name, ": ", text_of(error));
  id<MTLComputePipelineState> state = [device newComputePipelineStateWithFunction:function
                                                                            error:&error];
  [function release];
  TORCH_CHECK(state != nil, "mlxnorm: Metal pipeline ", name, ": ", text_of(error));
  const NSUInteger threads = [state maxTotalThreadsPerThreadgroup];
  if (threads < kMaxThreads) {
    [state release];
    TORCH_CHECK(false, "mlxnorm: this GPU runs ", name, " with at most ", threads,
                " threads per threadgroup, ", int(kMaxThreads), " are needed");
  }
  return state;
}

// Everything a pipeline depends on, in one word; the thread counts do not enter it.
uint64_t variant_of(const PipelineKey& key) {
  uint64_t variant = uint64_t(key.plan.kernel);
  variant = variant << 4 | key.plan.words_per_thread;
  variant = variant << 8 | key.plan.lanes_per_row;
  variant = variant << 1 | uint64_t(key.plan.vector);
  variant = variant << 1 | uint64_t(key.plan.prefetch_weight);
  variant = variant << 2 | uint64_t(key.dtype);
  variant = variant << 2 | uint64_t(key.weight);
  return variant << 1 | uint64_t(key.round_before_weight);
}

}  // namespace

id<MTLComputePipelineState> pipeline(const PipelineKey& key) {
  // `op` is a string constant, so its address stands for it.
  static auto* pipelines =
      new std::map<std::pair<const char*, uint64_t>, id<MTLComputePipelineState>>;
  const std::pair<const char*, uint64_t> variant{key.op, variant_of(key)};
  const std::lock_guard<std::mutex> lock(cache_mutex);
  const auto found = pipelines->find(variant);
  if (found != pipelines->end()) {
    return found->second;
  }
  @autoreleasepool {
    id<MTLComputePipelineState> state = create_pipeline(key);
    pipelines->emplace(variant, state);
    return state;
  }
}

KernelChoice kernel_choice() {
  static const KernelChoice choice = parse_kernel_choice(std::getenv("TORCH_MLXNORM_KERNEL"));
  return choice;
}

}  // namespace mlxnorm::mps
