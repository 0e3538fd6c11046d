// Runs compute dispatches of compiled shaders on the host.
#pragma once

#include <array>
#include <map>
#include <stdexcept>
#include <string>

#include "kernel_abi.h"
#include "shader_library.h"

namespace sim {

constexpr int kMaxBuffers = 31;
constexpr uint32_t kMaxThreadsPerThreadgroup = 1024;
constexpr size_t kMaxThreadgroupMemory = 32 << 10;

// A defect of a shader or of its dispatch, as text for a person.
class ShaderError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class BindingState {
  unbound,
  bound,
  stale,  // bound by an earlier dispatch of the same encoder and not since
};

struct BufferBinding {
  BindingState state = BindingState::unbound;
  char* contents = nullptr;  // of the whole buffer
  size_t length = 0;         // of the whole buffer
  size_t offset = 0;         // where the parameter points
};

struct ConstantValue {
  ConstantType type;
  alignas(8) unsigned char bytes[8];
};
using ConstantValues = std::map<int, ConstantValue>;

struct Dispatch {
  const ShaderLibrary* library = nullptr;
  const Kernel* kernel = nullptr;
  const ConstantValues* constants = nullptr;
  std::array<BufferBinding, kMaxBuffers> buffers;
  std::array<size_t, kMaxBuffers> threadgroup_lengths{};
  UInt3 threads_per_threadgroup{1, 1, 1};
  UInt3 threadgroups{1, 1, 1};
  UInt3 threads{0, 0, 0};  // of dispatchThreads; zero for dispatchThreadgroups
};

// The order in which the threads of a threadgroup, and the threadgroups of a grid, get their turn.
enum class ThreadOrder : int { forward = 0, reversed = 1, shuffled = 2 };
void set_thread_order(ThreadOrder order, uint64_t seed);

// How often each kernel ran since the thread order was set, by name.
std::map<std::string, uint64_t> kernels_run();

// Runs a dispatch to its end. Throws ShaderError; device memory then holds what was written so far.
void execute(const Dispatch& dispatch);

}  // namespace sim
