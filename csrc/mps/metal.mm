#include "metal.h"

#include <c10/util/Exception.h>
#include <dispatch/dispatch.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

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

id<MTLLibrary> library_of(id<MTLDevice> device, Op op) {
  static auto* libraries = new std::map<Op, id<MTLLibrary>>;
  id<MTLLibrary>& library = (*libraries)[op];
  if (library == nil) {
    for (const EmbeddedLibrary& embedded : kEmbeddedLibraries) {
      if (std::strcmp(embedded.name, name_of(op)) == 0) {
        library = compile(device, embedded);
      }
    }
    TORCH_CHECK(library != nil, "mlxnorm: no Metal library is embedded for ", name_of(op));
  }
  return library;
}

MTLFunctionConstantValues* constants_of(const PipelineKey& key) {
  MTLFunctionConstantValues* values = [[MTLFunctionConstantValues alloc] init];
  const auto set_bool = [values](const bool& value, FunctionConstant index) {
    [values setConstantValue:&value type:MTLDataTypeBool atIndex:index];
  };
  const auto set_uint = [values](const uint32_t& value, FunctionConstant index) {
    [values setConstantValue:&value type:MTLDataTypeUInt atIndex:index];
  };
  set_uint(key.operand_types, kOperandTypesConstant);
  set_bool(key.scale_is_scalar, kScaleIsScalarConstant);
  set_uint(key.activation, kActivationConstant);
  set_bool(key.round_before_weight, kRoundBeforeWeightConstant);
  set_bool(key.round_intermediates, kRoundIntermediatesConstant);
  set_bool(key.plan.prefetch, kPrefetchConstant);
  set_uint(key.plan.lanes_per_row, kLanesPerRowConstant);
  return values;
}

id<MTLComputePipelineState> create_pipeline(const PipelineKey& key) {
  id<MTLDevice> device = at::mps::MPSDevice::getInstance()->device();
  const std::string name = function_name(key.op, key.plan, key.dtype);
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
uint64_t packed(const PipelineKey& key) {
  uint64_t word = uint64_t(key.op);
  const auto append = [&word](uint64_t value, int bits) { word = word << bits | value; };
  append(uint64_t(key.plan.kernel), 2);
  append(key.plan.words_per_thread, 4);
  append(key.plan.lanes_per_row, 6);
  append(key.plan.vector, 1);
  append(key.plan.prefetch, 1);
  append(uint64_t(key.dtype), 2);
  append(key.operand_types, 2 * kOperands);
  append(key.scale_is_scalar, 1);
  append(key.activation, 2);
  append(key.round_before_weight, 1);
  append(key.round_intermediates, 1);
  return word;
}

}  // namespace

id<MTLComputePipelineState> pipeline(const PipelineKey& key) {
  static auto* pipelines = new std::unordered_map<uint64_t, id<MTLComputePipelineState>>;
  const std::lock_guard<std::mutex> lock(cache_mutex);
  id<MTLComputePipelineState>& state = (*pipelines)[packed(key)];
  if (state == nil) {
    @autoreleasepool {
      state = create_pipeline(key);
    }
  }
  return state;
}

KernelChoice kernel_choice() {
  static const KernelChoice choice = parse_kernel_choice(std::getenv("TORCH_MLXNORM_KERNEL"));
  return choice;
}

}  // namespace mlxnorm::mps
