// What a translated shader and the executor know of each other.
//
// A shader library is a shared object. While it is being loaded, the constructors of its
// registrations describe every kernel, threadgroup variable and function constant to the executor.
// While a kernel runs, it asks the executor for its arguments and calls it to synchronize.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sim {

// A place in the shader's source.
struct Site {
  const char* file;
  int line;
};

struct UInt3 {
  uint32_t x, y, z;
};

// The names are those of MSL's attributes; the translator writes them down as they are.
enum class ArgumentKind : int {
  none,
  buffer,
  threadgroup,
  thread_position_in_grid,
  threads_per_grid,
  threadgroup_position_in_grid,
  threadgroups_per_grid,
  thread_position_in_threadgroup,
  threads_per_threadgroup,
  dispatch_threads_per_threadgroup,
  thread_index_in_threadgroup,
  thread_index_in_simdgroup,
  simdgroup_index_in_threadgroup,
  simdgroups_per_threadgroup,
  dispatch_simdgroups_per_threadgroup,
  threads_per_simdgroup,
  thread_execution_width,
};

struct Argument {
  ArgumentKind kind;
  int index;             // of [[buffer(n)]] and [[threadgroup(n)]]
  const char* name;      // of the parameter
  bool (*is_present)();  // for [[function_constant(c)]] on a parameter, else null
};

// What the C++ type of a parameter says about the memory behind it.
struct ParameterType {
  size_t size;       // of the pointee; 1 for void
  size_t alignment;  // of the pointee
  bool is_reference;
};

struct Kernel {
  const char* name;  // the host name
  Site site;
  const void* function;  // identifies the kernel among threadgroup variables
  void (*run)();         // runs one thread, which fetches its arguments from the executor
  uint32_t max_threads;
  size_t argument_count;
  const Argument* arguments;
  const ParameterType* types;
};

enum class ConstantType : int {
  boolean,
  int8,
  uint8,
  int16,
  uint16,
  int32,
  uint32,
  int64,
  uint64,
  half_float,
  brain_float,
  single_float
};

struct FunctionConstantInfo {
  int index;
  const char* name;
  ConstantType type;
  Site site;
};

struct ThreadgroupVariableInfo {
  const void* function;
  int index;  // among the kernel's variables
  const char* name;
  size_t size;
  size_t alignment;
};

// Called by constructors of a library that is being loaded.
void register_kernel(const Kernel& kernel);
void register_threadgroup_variable(const ThreadgroupVariableInfo& variable);
void register_function_constant(const FunctionConstantInfo& constant);

// Called by a running kernel.
void* buffer_argument(size_t parameter);
void* threadgroup_argument(size_t parameter);
UInt3 builtin_argument(ArgumentKind kind);
void* threadgroup_variable_address(int index);
const void* function_constant_value(const FunctionConstantInfo& constant);
bool function_constant_is_defined(const FunctionConstantInfo& constant);
void threadgroup_barrier(uint32_t memory_flags, Site site);
void simdgroup_barrier(uint32_t memory_flags, Site site);
uint32_t simd_lane();

// Waits until every lane of the simdgroup has come to the same place, and returns the 32 values
// that they brought, `kSimdSlotSize` bytes apart.
constexpr size_t kSimdWidth = 32;
constexpr size_t kSimdSlotSize = 16;
const unsigned char* simd_exchange(const void* value, size_t size, Site site);

[[noreturn]] void fail(const char* message, Site site);

}  // namespace sim
