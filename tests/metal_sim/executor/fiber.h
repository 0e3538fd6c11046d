// A stack and registers of their own: one fiber per GPU thread of a threadgroup.
#pragma once

#include <stddef.h>
#include <stdint.h>

// The assembler switch saves callee-saved registers only (about 2 ns, where swapcontext makes two
// system calls). Other CPUs, or -DSIM_USE_UCONTEXT, take the portable way.
#if !defined(__x86_64__) && !defined(SIM_USE_UCONTEXT)
#define SIM_USE_UCONTEXT
#endif

#ifdef SIM_USE_UCONTEXT
#include <ucontext.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ADDRESS_SANITIZER
#endif
#endif

namespace sim {

class Fiber {
 public:
  // The next switch to this fiber calls `entry`, which must never return and begins with a call of
  // `entered`.
  void prepare(void* stack, size_t stack_size, void (*entry)());
  void entered(Fiber& from);

  // Suspends `from`, the fiber that is running, and continues `to`.
  static void switch_context(Fiber& from, Fiber& to);

 private:
  static void switch_stack(Fiber& from, Fiber& to);

#ifdef SIM_ADDRESS_SANITIZER
  const void* stack_ = nullptr;
  size_t stack_size_ = 0;
#endif
#ifdef SIM_USE_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

// Stacks for up to `kMaxStacks` fibers in one range of addresses, kept for the whole process.
class FiberStacks {
 public:
  static constexpr size_t kMaxStacks = 1024;
  static constexpr size_t kStackSize = 128 << 10;

  static FiberStacks& instance();

  // Usable memory of a stack; below it lies a page that cannot be touched.
  void* stack(size_t index);
  static constexpr size_t usable_size() { return kStackSize - kGuardSize; }

  uintptr_t begin() const { return reinterpret_cast<uintptr_t>(memory_); }
  static constexpr size_t total_size() { return kMaxStacks * kStackSize; }

 private:
  static constexpr size_t kGuardSize = 4096;

  FiberStacks();

  char* memory_;
  size_t guarded_ = 0;  // stacks whose guard page exists
};

}  // namespace sim
