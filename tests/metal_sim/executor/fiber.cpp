#include "fiber.h"

#include <stdlib.h>
#include <sys/mman.h>

namespace sim {

#ifdef SIM_USE_UCONTEXT

void Fiber::prepare(void* stack, size_t stack_size, void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = stack_size;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fiber::switch_context(Fiber& from, Fiber& to) {
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
}

void Fiber::switch_context(Fiber& from, Fiber& to) {
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
