#include "executor.h"

#include <string.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "execution.h"
#include "symbolize.h"

namespace sim {
namespace {

std::mutex execution_mutex;  // one dispatch at a time: there is one GPU
ThreadOrder thread_order = ThreadOrder::forward;
uint64_t thread_order_seed = 0;
std::map<std::string, uint64_t> run_counts;

// Threads and stacks are kept from dispatch to dispatch.
Execution& the_execution() {
  static Execution execution;
  return execution;
}

uint64_t volume(UInt3 v) {
  return uint64_t{v.x} * v.y * v.z;
}

std::string text(UInt3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string text(Site site) {
  return std::string(site.file) + ":" + std::to_string(site.line);
}

bool same_site(Site a, Site b) {
  return a.line == b.line && strcmp(a.file, b.file) == 0;
}

UInt3 position(uint64_t index, UInt3 extent) {
  return {static_cast<uint32_t>(index % extent.x),
          static_cast<uint32_t>(index / extent.x % extent.y),
          static_cast<uint32_t>(index / extent.x / extent.y)};
}

uint32_t divide_up(uint32_t a, uint32_t b) {
  return (a + b - 1) / b;
}

template <class Index>
std::vector<Index> make_order(size_t count, std::mt19937_64& random) {
  std::vector<Index> order(count);
  std::iota(order.begin(), order.end(), Index{0});
  if (thread_order == ThreadOrder::reversed) std::reverse(order.begin(), order.end());
  if (thread_order == ThreadOrder::shuffled) std::shuffle(order.begin(), order.end(), random);
  return order;
}

}  // namespace

thread_local Execution* current = nullptr;

void set_thread_order(ThreadOrder order, uint64_t seed) {
  std::lock_guard<std::mutex> lock(execution_mutex);
  thread_order = order;
  thread_order_seed = seed;
  run_counts.clear();
}

std::map<std::string, uint64_t> kernels_run() {
  std::lock_guard<std::mutex> lock(execution_mutex);
  return run_counts;
}

void execute(const Dispatch& dispatch) {
  std::lock_guard<std::mutex> lock(execution_mutex);
  current = &the_execution();
  struct Reset {
    ~Reset() { current = nullptr; }
  } reset;
  ++run_counts[dispatch.kernel->name];
  current->run(dispatch);
}

// ---- checks before the first thread runs --------------------------------------------------------

void Execution::reject(const std::string& message) const {
  throw ShaderError("kernel '" + std::string(dispatch_->kernel->name) + "' (" +
                    text(dispatch_->kernel->site) + "): " + message);
}

void Execution::check_geometry() const {
  const Dispatch& d = *dispatch_;
  const uint64_t threads = volume(d.threads_per_threadgroup);
  if (threads == 0) reject("threads per threadgroup is zero");
  if (volume(d.threads) == 0 && volume(d.threadgroups) == 0) reject("the grid is empty");
  const uint32_t limit = std::min(d.kernel->max_threads, kMaxThreadsPerThreadgroup);
  if (threads > limit) {
    reject("threads per threadgroup " + text(d.threads_per_threadgroup) +
           " exceed the pipeline's maxTotalThreadsPerThreadgroup of " + std::to_string(limit));
  }
}

void Execution::bind_buffer(size_t parameter, std::array<bool, kMaxBuffers>& wanted) {
  const Argument& argument = dispatch_->kernel->arguments[parameter];
  const ParameterType& type = dispatch_->kernel->types[parameter];
  const std::string label =
      "buffer(" + std::to_string(argument.index) + ") '" + argument.name + "'";
  if (argument.index < 0 || argument.index >= kMaxBuffers) reject(label + ": no such buffer index");
  wanted[argument.index] = true;
  const BufferBinding& binding = dispatch_->buffers[argument.index];
  if (binding.state == BindingState::unbound) reject("no buffer is bound to " + label);
  if (binding.state == BindingState::stale) {
    reject("no buffer is bound to " + label +
           " by this dispatch (an earlier dispatch on the same encoder left one there)");
  }
  if (type.is_reference && binding.length - binding.offset < type.size) {
    reject(label + " holds " + std::to_string(binding.length - binding.offset) +
           " bytes but the kernel's parameter needs " + std::to_string(type.size));
  }
  if (binding.offset % type.alignment != 0) {
    reject(label + ": offset " + std::to_string(binding.offset) +
           " is not a multiple of the element alignment " + std::to_string(type.alignment) +
           " (offsets are in bytes)");
  }
  pointers_[parameter] = binding.contents + binding.offset;
  ranges_.push_back({reinterpret_cast<uintptr_t>(binding.contents), binding.length, argument.index,
                     argument.name});
}

void Execution::bind_arguments() {
  const Kernel& kernel = *dispatch_->kernel;
  pointers_.assign(kernel.argument_count, nullptr);
  ranges_.clear();
  checker_.clear_threadgroup_variables();

  const auto variables = dispatch_->library->threadgroup_variables(kernel);
  size_t threadgroup_bytes = static_threadgroup_bytes(variables);
  variable_addresses_.clear();
  for (const auto& variable : variables) {
    variable_addresses_.push_back(
        checker_.add_threadgroup_variable(variable.name, variable.size, variable.alignment));
  }

  std::array<bool, kMaxBuffers> wanted{};
  for (size_t i = 0; i < kernel.argument_count; ++i) {
    const Argument& argument = kernel.arguments[i];
    if (argument.is_present && !argument.is_present()) continue;
    if (argument.kind == ArgumentKind::buffer) {
      bind_buffer(i, wanted);
    } else if (argument.kind == ArgumentKind::threadgroup) {
      const size_t length = dispatch_->threadgroup_lengths.at(argument.index);
      if (length == 0) {
        reject("no length is set for threadgroup(" + std::to_string(argument.index) + ") '" +
               argument.name + "'");
      }
      threadgroup_bytes += length;
      pointers_[i] = checker_.add_threadgroup_variable(argument.name, length, /*alignment=*/256);
    }
  }
  for (int i = 0; i < kMaxBuffers; ++i) {
    if (dispatch_->buffers[i].state == BindingState::bound && !wanted[i]) {
      reject("a buffer is bound to index " + std::to_string(i) +
             ", but the kernel has no parameter for it");
    }
  }
  if (threadgroup_bytes > kMaxThreadgroupMemory) {
    reject("needs " + std::to_string(threadgroup_bytes) +
           " bytes of threadgroup memory; there are " + std::to_string(kMaxThreadgroupMemory));
  }
  checker_.set_device_ranges(ranges_);
}

// ---- scheduling ---------------------------------------------------------------------------------

void Execution::run(const Dispatch& dispatch) {
  dispatch_ = &dispatch;
  running_ = nullptr;
  error_.clear();
  check_geometry();
  bind_arguments();

  const UInt3 size = dispatch.threads_per_threadgroup;
  grid_ = dispatch.threadgroups;
  if (volume(dispatch.threads) != 0) {
    grid_ = {divide_up(dispatch.threads.x, size.x), divide_up(dispatch.threads.y, size.y),
             divide_up(dispatch.threads.z, size.z)};
  }
  std::mt19937_64 random(thread_order_seed);
  for (uint64_t group : make_order<uint64_t>(volume(grid_), random)) {
    group_position_ = position(group, grid_);
    group_size_ = size;
    if (volume(dispatch.threads) != 0) {  // the last threadgroup of each axis may be smaller
      group_size_.x = std::min(size.x, dispatch.threads.x - group_position_.x * size.x);
      group_size_.y = std::min(size.y, dispatch.threads.y - group_position_.y * size.y);
      group_size_.z = std::min(size.z, dispatch.threads.z - group_position_.z * size.z);
    }
    run_threadgroup(make_order<uint32_t>(volume(group_size_), random));
    if (!error_.empty()) throw ShaderError(error_);
  }
}

void Execution::run_threadgroup(const std::vector<uint32_t>& order) {
  FiberStacks& stacks = FiberStacks::instance();
  const uint32_t count = static_cast<uint32_t>(order.size());
  if (threads_.size() < count) threads_.resize(count);
  thread_count_ = count;
  for (uint32_t i = 0; i < count; ++i) {
    Thread& thread = threads_[i];
    thread.state = ThreadState::ready;
    thread.index = i;
    thread.fiber.prepare(stacks.stack(i), FiberStacks::usable_size(), &Execution::thread_main);
  }
  simdgroup_count_ = divide_up(count, kSimdWidth);
  for (size_t i = 0; i < simdgroup_count_; ++i) {
    simdgroups_[i].phase = 0;
    simdgroups_[i].epoch = 0;
  }
  checker_.begin_threadgroup();
  waiting_at_simd_ = waiting_at_barrier_ = 0;

  for (;;) {
    for (uint32_t index : order) {
      if (threads_[index].state != ThreadState::ready) continue;
      running_ = &threads_[index];
      Fiber::switch_context(scheduler_, running_->fiber);
      if (!error_.empty()) return;  // the other threads are abandoned where they are
    }
    if (waiting_at_simd_ > 0) {
      for (size_t i = 0; i < simdgroup_count_ && error_.empty(); ++i) release_simdgroup(i);
    } else if (waiting_at_barrier_ > 0) {
      release_barrier();
    } else {
      return;
    }
    if (!error_.empty()) return;
  }
}

void Execution::release_simdgroup(size_t simdgroup) {
  const uint32_t first = static_cast<uint32_t>(simdgroup * kSimdWidth);
  const uint32_t last = std::min<uint32_t>(first + kSimdWidth, thread_count_);
  const Thread* waiting = nullptr;
  for (uint32_t i = first; i < last && !waiting; ++i) {
    if (threads_[i].state == ThreadState::at_simd) waiting = &threads_[i];
  }
  if (!waiting) return;

  const std::string missing = "simd function with missing lanes at " + text(waiting->site) + ": ";
  if (last - first != kSimdWidth) {
    set_error(missing + "simdgroup " + std::to_string(simdgroup) + " has only " +
                  std::to_string(last - first) + " lanes (the threadgroup has " +
                  std::to_string(thread_count_) + " threads, not a multiple of 32)",
              *waiting);
    return;
  }
  for (uint32_t i = first; i < last; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == ThreadState::at_simd && same_site(thread.site, waiting->site)) continue;
    std::string other =
        "lane " + std::to_string(i - first) + " of simdgroup " + std::to_string(simdgroup);
    if (thread.state == ThreadState::done) {
      other += " has returned";
    } else if (thread.state == ThreadState::at_barrier) {
      other += " waits at the barrier at " + text(thread.site);
    } else {
      other += " is in another simd function at " + text(thread.site);
    }
    set_error(missing + other, *waiting);
    return;
  }

  SimdGroup& group = simdgroups_[simdgroup];
  if (waiting->memory_flags & kThreadgroupMemoryFlag) ++group.epoch;
  group.phase ^= 1;
  for (uint32_t i = first; i < last; ++i) threads_[i].state = ThreadState::ready;
  waiting_at_simd_ -= kSimdWidth;
}

void Execution::release_barrier() {
  const Thread* waiting = nullptr;
  for (uint32_t i = 0; i < thread_count_ && !waiting; ++i) {
    if (threads_[i].state == ThreadState::at_barrier) waiting = &threads_[i];
  }
  for (uint32_t i = 0; i < thread_count_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == ThreadState::at_barrier && same_site(thread.site, waiting->site)) continue;
    const std::string other = thread.state == ThreadState::done
                                  ? " has returned"
                                  : " waits at the barrier at " + text(thread.site);
    set_error("barrier divergence: thread " + std::to_string(waiting->index) +
                  " waits at the barrier at " + text(waiting->site) + " but thread " +
                  std::to_string(i) + other,
              *waiting);
    return;
  }
  if (waiting->memory_flags & kThreadgroupMemoryFlag) checker_.advance_epoch();
  for (uint32_t i = 0; i < thread_count_; ++i) threads_[i].state = ThreadState::ready;
  waiting_at_barrier_ = 0;
}

void Execution::thread_main() {
  Execution& self = *current;
  self.running_->fiber.entered(self.scheduler_);
  self.dispatch_->kernel->run();
  self.running_->state = ThreadState::done;
  Fiber::switch_context(self.running_->fiber, self.scheduler_);
  __builtin_unreachable();
}

void Execution::wait(ThreadState state, uint32_t memory_flags, Site site) {
  running_->state = state;
  running_->site = site;
  running_->memory_flags = memory_flags;
  ++(state == ThreadState::at_simd ? waiting_at_simd_ : waiting_at_barrier_);
  Fiber::switch_context(running_->fiber, scheduler_);
}

void Execution::set_error(const std::string& message, const Thread& thread) {
  error_ = "kernel '" + std::string(dispatch_->kernel->name) + "': " + message + ", thread " +
           text(position(thread.index, group_size_)) + " of threadgroup " + text(group_position_);
}

void Execution::fail(const std::string& message) {
  set_error(message, *running_);
  // An abandoned thread is never continued; kernels own nothing that would need unwinding.
  Fiber::switch_context(running_->fiber, scheduler_);
  __builtin_unreachable();
}

void Execution::check_other_access(AccessKind kind, const void* address, size_t size,
                                   const void* pc) {
  const uint32_t index = running_->index;
  const uint16_t simdgroup = static_cast<uint16_t>(index / kSimdWidth);
  const Accessor accessor{static_cast<uint16_t>(index), simdgroup, simdgroups_[simdgroup].epoch};
  auto defect = checker_.check(kind, reinterpret_cast<uintptr_t>(address), size, pc, accessor);
  if (defect) fail(*defect + ", at " + source_location(pc));
}

UInt3 Execution::builtin(ArgumentKind kind) const {
  const UInt3 full_size = dispatch_->threads_per_threadgroup;
  const uint32_t index = running_->index;
  const UInt3 in_group = position(index, group_size_);
  switch (kind) {
    case ArgumentKind::thread_position_in_threadgroup:
      return in_group;
    case ArgumentKind::threadgroup_position_in_grid:
      return group_position_;
    case ArgumentKind::thread_position_in_grid:
      return {group_position_.x * full_size.x + in_group.x,
              group_position_.y * full_size.y + in_group.y,
              group_position_.z * full_size.z + in_group.z};
    case ArgumentKind::threads_per_threadgroup:
      return group_size_;
    case ArgumentKind::dispatch_threads_per_threadgroup:
      return full_size;
    case ArgumentKind::threadgroups_per_grid:
      return grid_;
    case ArgumentKind::threads_per_grid:
      if (volume(dispatch_->threads) != 0) return dispatch_->threads;
      return {grid_.x * full_size.x, grid_.y * full_size.y, grid_.z * full_size.z};
    case ArgumentKind::thread_index_in_threadgroup:
      return {index, 0, 0};
    case ArgumentKind::thread_index_in_simdgroup:
      return {static_cast<uint32_t>(index % kSimdWidth), 0, 0};
    case ArgumentKind::simdgroup_index_in_threadgroup:
      return {static_cast<uint32_t>(index / kSimdWidth), 0, 0};
    case ArgumentKind::simdgroups_per_threadgroup:
      return {divide_up(thread_count_, kSimdWidth), 0, 0};
    case ArgumentKind::dispatch_simdgroups_per_threadgroup:
      return {divide_up(static_cast<uint32_t>(volume(full_size)), kSimdWidth), 0, 0};
    case ArgumentKind::threads_per_simdgroup:
    case ArgumentKind::thread_execution_width:
      return {kSimdWidth, 0, 0};
    case ArgumentKind::none:
    case ArgumentKind::buffer:
    case ArgumentKind::threadgroup:
      break;
  }
  return {0, 0, 0};
}

const unsigned char* Execution::simd_exchange(const void* value, size_t size, uint32_t memory_flags,
                                              Site site) {
  SimdGroup& group = simdgroups_[running_->index / kSimdWidth];
  unsigned char* slots = group.slots[group.phase];
  memcpy(slots + running_->index % kSimdWidth * kSimdSlotSize, value, size);
  wait(ThreadState::at_simd, memory_flags, site);
  return slots;
}

const void* Execution::function_constant(const FunctionConstantInfo& constant) {
  const auto found = dispatch_->constants->find(constant.index);
  if (found == dispatch_->constants->end()) {
    const std::string message = "function constant '" + std::string(constant.name) +
                                "' [[function_constant(" + std::to_string(constant.index) +
                                ")]] (" + text(constant.site) + ") is read but was never set";
    // A condition on a parameter is evaluated before any thread runs.
    if (!running_) reject(message);
    fail(message);
  }
  return found->second.bytes;
}

// ---- what kernels call --------------------------------------------------------------------------

void* buffer_argument(size_t parameter) {
  return current->pointer(parameter);
}

void* threadgroup_argument(size_t parameter) {
  return current->pointer(parameter);
}

UInt3 builtin_argument(ArgumentKind kind) {
  return current->builtin(kind);
}

void* threadgroup_variable_address(int index) {
  return current->variable_address(index);
}

const void* function_constant_value(const FunctionConstantInfo& constant) {
  return current ? current->function_constant(constant)
                 : constant_read_while_loading(constant.name);
}

bool function_constant_is_defined(const FunctionConstantInfo& constant) {
  if (!current) constant_read_while_loading(constant.name);
  return current && current->has_function_constant(constant.index);
}

void threadgroup_barrier(uint32_t memory_flags, Site site) {
  current->wait(ThreadState::at_barrier, memory_flags, site);
}

void simdgroup_barrier(uint32_t memory_flags, Site site) {
  const char nothing = 0;
  current->simd_exchange(&nothing, sizeof nothing, memory_flags, site);
}

uint32_t simd_lane() {
  return current->builtin(ArgumentKind::thread_index_in_simdgroup).x;
}

const unsigned char* simd_exchange(const void* value, size_t size, Site site) {
  return current->simd_exchange(value, size, /*memory_flags=*/0, site);
}

void fail(const char* message, Site site) {
  current->fail(std::string(message) + " at " + text(site));
}

}  // namespace sim
