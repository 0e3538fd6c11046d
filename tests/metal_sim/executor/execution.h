// The dispatch that is running: its threads, their states and the memory they may touch.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "executor.h"
#include "fiber.h"
#include "memory_checker.h"

namespace sim {

// MSL's mem_flags::mem_threadgroup.
constexpr uint32_t kThreadgroupMemoryFlag = 2;

enum class ThreadState { ready, at_barrier, at_simd, done };

class Execution {
 public:
  void run(const Dispatch& dispatch);

  bool is_thread_running() const { return running_ != nullptr; }

  // ---- for the thread that is running ----
  void wait(ThreadState state, uint32_t memory_flags, Site site);
  const unsigned char* simd_exchange(const void* value, size_t size, uint32_t memory_flags,
                                     Site site);
  void* pointer(size_t parameter) const { return pointers_[parameter]; }
  void* variable_address(int index) const { return variable_addresses_[index]; }
  UInt3 builtin(ArgumentKind kind) const;
  const void* function_constant(const FunctionConstantInfo& constant);
  bool has_function_constant(int index) const { return dispatch_->constants->count(index) != 0; }
  void check_access(AccessKind kind, const void* address, size_t size, const void* pc) {
    if (checker_.is_plainly_allowed(reinterpret_cast<uintptr_t>(address), size)) return;
    check_other_access(kind, address, size, pc);
  }
  // Ends the dispatch with an error that names the running thread.
  [[noreturn]] void fail(const std::string& message);

 private:
  struct Thread {
    Fiber fiber;
    ThreadState state;
    uint32_t index;
    uint32_t memory_flags;  // of the barrier at which it waits
    Site site;              // where it waits
  };

  // Two sets of slots: lanes may still read one while others already fill the next.
  struct SimdGroup {
    alignas(16) unsigned char slots[2][kSimdWidth * kSimdSlotSize];
    int phase;
    uint32_t epoch;
  };

  void check_other_access(AccessKind kind, const void* address, size_t size, const void* pc);
  [[noreturn]] void reject(const std::string& message) const;
  void check_geometry() const;
  void bind_arguments();
  void bind_buffer(size_t parameter, std::array<bool, kMaxBuffers>& wanted);

  void run_threadgroup(const std::vector<uint32_t>& order);
  void release_simdgroup(size_t simdgroup);
  void release_barrier();
  void set_error(const std::string& message, const Thread& thread);
  static void thread_main();

  const Dispatch* dispatch_ = nullptr;
  std::vector<void*> pointers_;  // of buffer and threadgroup parameters
  std::vector<void*> variable_addresses_;
  std::vector<DeviceRange> ranges_;
  MemoryChecker checker_;

  UInt3 grid_{};
  UInt3 group_position_{};
  UInt3 group_size_{};
  std::vector<Thread> threads_;
  std::array<SimdGroup, kMaxThreadsPerThreadgroup / kSimdWidth> simdgroups_;
  size_t simdgroup_count_ = 0;
  uint32_t thread_count_ = 0;
  uint32_t waiting_at_simd_ = 0;
  uint32_t waiting_at_barrier_ = 0;
  Thread* running_ = nullptr;
  Fiber scheduler_;
  std::string error_;
};

// Set while a dispatch runs, on the thread that runs it: others may load libraries meanwhile, whose
// constructors are instrumented as well. A fiber never outlives its dispatch, so it sees one
// thread.
extern thread_local Execution* current __attribute__((tls_model("initial-exec")));

}  // namespace sim
