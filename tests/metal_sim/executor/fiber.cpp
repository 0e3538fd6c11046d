#include "fiber.h"

#include <stdlib.h>
#include <sys/mman.h>

#ifdef SIM_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace sim {

// AddressSanitizer has to know on which stack it is. Fake stacks, which it would keep as well, are
// off (detect_stack_use_after_return=0).
#ifdef SIM_ADDRESS_SANITIZER

void Fiber::entered(Fiber& from) {
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_, &from.stack_size_);
}

void Fiber::switch_context(Fiber& from, Fiber& to) {
  __sanitizer_start_switch_fiber(nullptr, to.stack_, to.stack_size_);
  switch_stack(from, to);
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}

#else

void Fiber::entered(Fiber&) {}

void Fiber::switch_context(Fiber& from, Fiber& to) {
  switch_stack(from, to);
}

#endif

#ifdef SIM_USE_UCONTEXT

void Fiber::prepare(void* stack, size_t stack_size, void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = stack_size;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fiber::switch_stack(Fiber& from, Fiber& to) {
  swapcontext(&from.context_, &to.context_);
}

#else

// void sim_switch_stack(void** save_stack_pointer, void* next_stack_pointer)
extern "C" __attribute__((visibility("hidden"))) void sim_switch_stack(void**, void*);
asm(R"(
.text
.hidden sim_switch_stack
.globl sim_switch_stack
.type sim_switch_stack, @function
sim_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sim_switch_stack, .-sim_switch_stack
)");

void Fiber::prepare(void* stack, size_t stack_size, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + stack_size) & ~uintptr_t{15};
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;  // the return address of `entry`; also gives it the alignment it expects
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--slot = nullptr;
  stack_pointer_ = slot;
#ifdef SIM_ADDRESS_SANITIZER
  stack_ = stack;
  stack_size_ = stack_size;
  __asan_unpoison_memory_region(stack, stack_size);  // a thread may have been abandoned on it
#endif
}

void Fiber::switch_stack(Fiber& from, Fiber& to) {
  sim_switch_stack(&from.stack_pointer_, to.stack_pointer_);
}

#endif

FiberStacks& FiberStacks::instance() {
  static FiberStacks stacks;
  return stacks;
}

FiberStacks::FiberStacks() {
  void* memory = mmap(nullptr, total_size(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  memory_ = static_cast<char*>(memory);
}

void* FiberStacks::stack(size_t index) {
  for (; guarded_ <= index; ++guarded_) {
    mprotect(memory_ + guarded_ * kStackSize, kGuardSize, PROT_NONE);
  }
  return memory_ + index * kStackSize + kGuardSize;
}

}  // namespace sim
