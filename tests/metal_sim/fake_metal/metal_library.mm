// From MSL source to pipelines: MTLCompileOptions, MTLLibrary, MTLFunction,
// MTLComputePipelineState.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>

#include <dlfcn.h>

#include "foundation.h"
#include "metal_library.h"
#include "metal_objects.h"
#include "stats.h"

sim::CompilerConfig& sim::compiler_config() {
  static CompilerConfig config;
  return config;
}

std::string sim::CompilerConfig::failure() {
  const std::lock_guard<std::mutex> lock(failure_mutex_);
  return failure_;
}
void sim::CompilerConfig::set_failure(const std::string& text) {
  const std::lock_guard<std::mutex> lock(failure_mutex_);
  failure_ = text;
}

// ---- compile options ----------------------------------------------------------------------------

@interface SimCompileOptions : MTLCompileOptions {
 @public
  NSDictionary<NSString*, NSObject*>* _preprocessorMacros;
  BOOL _fastMathEnabled;
  MTLMathMode _mathMode;
  MTLMathFloatingPointFunctions _mathFloatingPointFunctions;
  MTLLanguageVersion _languageVersion;
  BOOL _preserveInvariance;
  NSUInteger _maxTotalThreadsPerThreadgroup;
}
@end

@implementation MTLCompileOptions
@dynamic preprocessorMacros, fastMathEnabled, mathMode, mathFloatingPointFunctions, languageVersion;
@dynamic preserveInvariance, maxTotalThreadsPerThreadgroup;
+ (instancetype)alloc {
  return self == [MTLCompileOptions class] ? (id)[SimCompileOptions alloc] : [super alloc];
}
- (id)copyWithZone:(NSZone*)zone {
  return [self retain];
}
@end

@implementation SimCompileOptions
@synthesize preprocessorMacros = _preprocessorMacros;
@synthesize mathFloatingPointFunctions = _mathFloatingPointFunctions;
@synthesize languageVersion = _languageVersion;
@synthesize preserveInvariance = _preserveInvariance;
@synthesize maxTotalThreadsPerThreadgroup = _maxTotalThreadsPerThreadgroup;
- (instancetype)init {
  // Metal's defaults: fast math.
  _fastMathEnabled = YES;
  _mathMode = MTLMathModeFast;
  return self;
}
- (void)dealloc {
  [_preprocessorMacros release];
  [super dealloc];
}
- (BOOL)fastMathEnabled {
  return _fastMathEnabled;
}
- (void)setFastMathEnabled:(BOOL)enabled {
  _fastMathEnabled = enabled;
  _mathMode = enabled ? MTLMathModeFast : MTLMathModeSafe;
}
- (MTLMathMode)mathMode {
  return _mathMode;
}
- (void)setMathMode:(MTLMathMode)mode {
  _mathMode = mode;
  _fastMathEnabled = mode == MTLMathModeFast;
}
@end

// ---- the translator -----------------------------------------------------------------------------

namespace {

std::string shell_quote(const std::string& text) {
  std::string quoted = "'";
  for (char c : text) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  return quoted + "'";
}

std::string read_file(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The shared object that this code is part of; compiled shaders are linked against it.
std::string own_path() {
  Dl_info info;
  dladdr(reinterpret_cast<void*>(&own_path), &info);
  return info.dli_fname;
}

struct TemporaryFolder {
  std::string path;
  TemporaryFolder() {
    const char* base = std::getenv("TMPDIR");
    std::string pattern = std::string(base ? base : "/tmp") + "/metal_sim_XXXXXX";
    if (mkdtemp(pattern.data())) path = pattern;
  }
  ~TemporaryFolder() {
    for (const char* name : {"/source.metal", "/errors"}) unlink((path + name).c_str());
    rmdir(path.c_str());
  }
};

// Path of the compiled library. Throws with the messages of the translator or compiler.
std::string compile_source(const std::string& source, NSDictionary* macros) {
  if (macros.count != 0) {
    throw std::runtime_error("preprocessorMacros are not supported by the simulator");
  }
  const sim::CompilerConfig& config = sim::compiler_config();
  TemporaryFolder folder;
  const std::string source_path = folder.path + "/source.metal";
  const std::string errors_path = folder.path + "/errors";
  std::ofstream(source_path) << source;
  const std::string command =
      // Not under the sanitizer that this process may be under.
      "env -u LD_PRELOAD PYTHONPATH=" + shell_quote(config.module_dir) + " " +
      shell_quote(config.python) + " -m metal_sim.compile_library " + shell_quote(source_path) +
      " --runtime " + shell_quote(own_path()) + " 2>" + shell_quote(errors_path);
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) throw std::runtime_error("cannot run the translator");
  std::string output;
  char buffer[4096];
  while (fgets(buffer, sizeof buffer, pipe)) output += buffer;
  if (pclose(pipe) != 0) throw std::runtime_error(read_file(errors_path));
  output.erase(output.find_last_not_of("\n") + 1);
  return output;
}

struct TypeName {
  MTLDataType type;
  sim::ConstantType constant_type;
  size_t size;
  const char* name;
};

constexpr TypeName kConstantTypes[] = {
    {MTLDataTypeBool, sim::ConstantType::boolean, 1, "bool"},
    {MTLDataTypeChar, sim::ConstantType::int8, 1, "char"},
    {MTLDataTypeUChar, sim::ConstantType::uint8, 1, "uchar"},
    {MTLDataTypeShort, sim::ConstantType::int16, 2, "short"},
    {MTLDataTypeUShort, sim::ConstantType::uint16, 2, "ushort"},
    {MTLDataTypeInt, sim::ConstantType::int32, 4, "int"},
    {MTLDataTypeUInt, sim::ConstantType::uint32, 4, "uint"},
    {MTLDataTypeLong, sim::ConstantType::int64, 8, "long"},
    {MTLDataTypeULong, sim::ConstantType::uint64, 8, "ulong"},
    {MTLDataTypeHalf, sim::ConstantType::half_float, 2, "half"},
    {MTLDataTypeBFloat, sim::ConstantType::brain_float, 2, "bfloat"},
    {MTLDataTypeFloat, sim::ConstantType::single_float, 4, "float"},
};

const TypeName* find_type(MTLDataType type) {
  for (const auto& known : kConstantTypes) {
    if (known.type == type) return &known;
  }
  return nullptr;
}

const char* name_of(sim::ConstantType type) {
  for (const auto& known : kConstantTypes) {
    if (known.constant_type == type) return known.name;
  }
  return "?";
}

}  // namespace

namespace {

// While one exists, a source is being compiled.
struct Compilation {
  Compilation() {
    const uint64_t now = ++running();
    std::atomic<uint64_t>& most = sim::stats().compiled_at_once;
    for (uint64_t known = most; known < now && !most.compare_exchange_weak(known, now);) {
    }
  }
  ~Compilation() { --running(); }
  static std::atomic<uint64_t>& running() {
    static std::atomic<uint64_t> count{0};
    return count;
  }
};

SimLibrary* wrap(const sim::ShaderLibrary* library) {
  SimLibrary* result = [[SimLibrary alloc] init];
  result->_library = library;
  return result;
}

}  // namespace

SimLibrary* sim::make_library(const std::string& source, MTLCompileOptions* options,
                              NSError** error) {
  try {
    const Compilation compilation;
    const std::string failure = compiler_config().failure();
    if (!failure.empty()) throw std::runtime_error(failure);
    const ShaderLibrary* library =
        ShaderLibrary::load(compile_source(source, options.preprocessorMacros));
    ++stats().libraries;
    stats().kernels_compiled += library->kernels().size();
    // No options at all mean Metal's default, which is fast math.
    if (!options || options.mathMode != MTLMathModeSafe) ++stats().fast_math_libraries;
    return wrap(library);
  } catch (const std::exception& failure) {
    if (error) *error = make_error("MTLLibraryErrorDomain", failure.what());
    return nil;
  }
}

SimLibrary* sim::load_metallib(const std::string& bytes, NSError** error) {
  try {
    if (compiler_config().refuses_metallibs) throw std::runtime_error("metallibs are refused");
    if (bytes.rfind(kMetallibMagic, 0) != 0) throw std::runtime_error("this is no metallib");
    const std::string source = bytes.substr(std::strlen(kMetallibMagic));
    const ShaderLibrary* library = ShaderLibrary::load(compile_source(source, nil));
    ++stats().metallibs;
    return wrap(library);
  } catch (const std::exception& failure) {
    if (error) *error = make_error("MTLLibraryErrorDomain", failure.what());
    return nil;
  }
}

SimPipeline* sim::make_pipeline(SimFunction* function, NSError** error) {
  if (!function) {
    if (error) *error = make_error("MTLPipelineErrorDomain", "the compute function is nil");
    return nil;
  }
  const auto variables = function->_library->_library->threadgroup_variables(*function->_kernel);
  const size_t threadgroup_memory = static_threadgroup_bytes(variables);
  if (threadgroup_memory > kMaxThreadgroupMemory) {
    if (error) {
      *error =
          make_error("MTLPipelineErrorDomain", "kernel '" + std::string(function->_kernel->name) +
                                                   "' needs " + std::to_string(threadgroup_memory) +
                                                   " bytes of threadgroup memory; there are " +
                                                   std::to_string(kMaxThreadgroupMemory));
    }
    return nil;
  }
  ++stats().pipelines;
  SimPipeline* pipeline = [[SimPipeline alloc] init];
  pipeline->_function = [function retain];
  pipeline->_static_threadgroup_memory = threadgroup_memory;
  return pipeline;
}

// ---- function constants -------------------------------------------------------------------------

namespace {

struct SetConstant {
  MTLDataType type;
  unsigned char bytes[8];
};

struct SetConstants {
  std::map<NSUInteger, SetConstant> by_index;
  std::map<std::string, SetConstant> by_name;
};

SetConstant make_constant(const void* value, MTLDataType type) {
  SetConstant constant{type, {}};
  if (const TypeName* known = find_type(type)) std::memcpy(constant.bytes, value, known->size);
  return constant;
}

}  // namespace

@interface SimFunctionConstantValues : MTLFunctionConstantValues {
 @public
  SetConstants* _constants;
}
@end

@implementation MTLFunctionConstantValues
+ (instancetype)alloc {
  if (self == [MTLFunctionConstantValues class]) return (id)[SimFunctionConstantValues alloc];
  return [super alloc];
}
- (void)setConstantValue:(const void*)value type:(MTLDataType)type atIndex:(NSUInteger)index {
}
- (void)setConstantValues:(const void*)values type:(MTLDataType)type withRange:(NSRange)range {
}
- (void)setConstantValue:(const void*)value type:(MTLDataType)type withName:(NSString*)name {
}
- (void)reset {
}
- (id)copyWithZone:(NSZone*)zone {
  return [self retain];
}
@end

@implementation SimFunctionConstantValues
- (instancetype)init {
  _constants = new SetConstants;
  return self;
}
- (void)dealloc {
  delete _constants;
  [super dealloc];
}
- (void)setConstantValue:(const void*)value type:(MTLDataType)type atIndex:(NSUInteger)index {
  _constants->by_index[index] = make_constant(value, type);
}
- (void)setConstantValues:(const void*)values type:(MTLDataType)type withRange:(NSRange)range {
  const TypeName* known = find_type(type);
  const size_t size = known ? known->size : 0;
  for (NSUInteger i = 0; i < range.length; ++i) {
    [self setConstantValue:static_cast<const char*>(values) + i * size
                      type:type
                   atIndex:range.location + i];
  }
}
- (void)setConstantValue:(const void*)value type:(MTLDataType)type withName:(NSString*)name {
  _constants->by_name[sim::to_string(name)] = make_constant(value, type);
}
- (void)reset {
  *_constants = {};
}
@end

namespace {

// Values for the constants that the library declares. Throws when a type does not fit.
sim::ConstantValues resolve_constants(const sim::ShaderLibrary& library, const SetConstants& set) {
  sim::ConstantValues values;
  for (const auto& declared : library.function_constants()) {
    const SetConstant* given = nullptr;
    if (auto found = set.by_index.find(declared.index); found != set.by_index.end()) {
      given = &found->second;
    } else if (auto named = set.by_name.find(declared.name); named != set.by_name.end()) {
      given = &named->second;
    }
    if (!given) continue;
    const TypeName* type = find_type(given->type);
    if (!type || type->constant_type != declared.type) {
      throw std::runtime_error(
          "function constant '" + std::string(declared.name) + "' [[function_constant(" +
          std::to_string(declared.index) + ")]] has type " + name_of(declared.type) +
          ", but its value was set as " + (type ? type->name : "another type"));
    }
    sim::ConstantValue value{declared.type, {}};
    std::memcpy(value.bytes, given->bytes, sizeof value.bytes);
    values[declared.index] = value;
  }
  return values;
}

SimFunction* make_function(SimLibrary* library, NSString* name) {
  const sim::Kernel* kernel = library->_library->find_kernel(sim::to_string(name));
  if (!kernel) return nil;
  ++sim::stats().functions;
  SimFunction* function = [[SimFunction alloc] init];
  function->_library = [library retain];
  function->_kernel = kernel;
  function->_constants = new sim::ConstantValues;
  return function;
}

}  // namespace

// ---- libraries, functions, pipelines ------------------------------------------------------------

@implementation SimLibrary
- (NSArray<NSString*>*)functionNames {
  std::vector<std::string> names;
  for (const auto& kernel : _library->kernels()) names.push_back(kernel.name);
  return sim::make_string_array(names);
}
- (id<MTLFunction>)newFunctionWithName:(NSString*)name {
  return make_function(self, name);
}
- (id<MTLFunction>)newFunctionWithName:(NSString*)name
                        constantValues:(MTLFunctionConstantValues*)constantValues
                                 error:(NSError**)error {
  SimFunction* function = make_function(self, name);
  if (!function) {
    if (error) {
      *error = sim::make_error("MTLLibraryErrorDomain",
                               "the library has no function named '" + sim::to_string(name) + "'");
    }
    return nil;
  }
  try {
    const auto* values = static_cast<SimFunctionConstantValues*>(constantValues);
    if (values) *function->_constants = resolve_constants(*_library, *values->_constants);
  } catch (const std::exception& failure) {
    if (error) *error = sim::make_error("MTLLibraryErrorDomain", failure.what());
    [function release];
    return nil;
  }
  return function;
}
@end

@implementation SimFunction
- (NSString*)name {
  return sim::make_string(_kernel->name);
}
- (void)dealloc {
  delete _constants;
  [_library release];
  [super dealloc];
}
@end

@implementation SimPipeline
- (NSUInteger)maxTotalThreadsPerThreadgroup {
  return std::min(_function->_kernel->max_threads, sim::kMaxThreadsPerThreadgroup);
}
- (NSUInteger)threadExecutionWidth {
  return sim::kSimdWidth;
}
- (NSUInteger)staticThreadgroupMemoryLength {
  return _static_threadgroup_memory;
}
- (void)dealloc {
  [_function release];
  [super dealloc];
}
@end
