// Decides for every access of a running kernel whether it is allowed.
//
// Kernels are compiled with clang's ThreadSanitizer pass, which puts a call in front of each memory
// access; instrumentation.cpp answers those calls and asks this class. So an access is judged
// before it happens, with its address, size and place in the shader.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <optional>
#include <string>
#include <vector>

#include "kernel_abi.h"

namespace sim {

struct DeviceRange {
  uintptr_t begin;
  size_t size;
  int index;         // of [[buffer(n)]]
  const char* name;  // of the parameter
};

// The thread that makes an access.
struct Accessor {
  uint16_t thread;
  uint16_t simdgroup;
  uint32_t simd_epoch;  // counts the simdgroup's memory barriers
};

enum class AccessKind { read, write };

class MemoryChecker {
 public:
  static constexpr size_t kMaxThreadgroupBytes = 32 << 10;

  MemoryChecker();

  // ---- per dispatch ----
  void set_device_ranges(std::vector<DeviceRange> ranges);
  // Forgets the variables of the last dispatch.
  void clear_threadgroup_variables();
  // Reserves checked threadgroup memory and returns where it is.
  void* add_threadgroup_variable(const std::string& name, size_t size, size_t alignment);

  // ---- per threadgroup ----
  // Everything in threadgroup memory is uninitialised again.
  void begin_threadgroup();
  // A barrier ordered the threadgroup's accesses to threadgroup memory.
  void advance_epoch() { ++epoch_; }

  // ---- per access ----
  // The quick answer for most accesses: inside a buffer, or on a thread's own stack.
  bool is_plainly_allowed(uintptr_t address, size_t size) {
    if (contains(last_range_, address, size)) return true;
    if (address - stacks_ < stacks_size_) return true;
    for (size_t i = 0; i < ranges_.size(); ++i) {
      if (contains(i, address, size)) {
        last_range_ = i;
        return true;
      }
    }
    return false;
  }
  // Text of the defect, or nothing when the access is right. `pc` is the access's place in the
  // code.
  std::optional<std::string> check(AccessKind kind, uintptr_t address, size_t size, const void* pc,
                                   const Accessor& accessor);

 private:
  struct Variable {
    std::string name;
    uintptr_t begin;
    size_t size;
  };

  // What is known about one byte of threadgroup memory.
  struct Cell {
    uint32_t generation;  // threadgroup that wrote it last; older means uninitialised
    uint32_t write_epoch;
    uint32_t write_simd_epoch;
    uint32_t read_epoch;
    uint32_t read_simd_epoch;
    uint16_t writer;
    uint16_t writer_simdgroup;
    uint16_t reader;
    uint16_t reader_simdgroup;
    const void* write_pc;
    const void* read_pc;
  };

  bool contains(size_t range, uintptr_t address, size_t size) const {
    if (range >= ranges_.size()) return false;
    const uintptr_t offset = address - ranges_[range].begin;
    return offset < ranges_[range].size && size <= ranges_[range].size - offset;
  }
  std::optional<std::string> check_threadgroup(AccessKind kind, uintptr_t address, size_t size,
                                               const void* pc, const Accessor& accessor);
  std::optional<std::string> check_elsewhere(AccessKind kind, uintptr_t address, size_t size) const;
  std::string describe_race(AccessKind kind, const Variable& variable, uintptr_t address,
                            const Cell& cell, bool with_write, const Accessor& accessor) const;
  void record_read(Cell& cell, const void* pc, const Accessor& accessor);
  void record_write(Cell& cell, const void* pc, const Accessor& accessor);

  std::vector<DeviceRange> ranges_;
  size_t last_range_ = 0;  // index of the range that the last device access hit

  const uintptr_t stacks_;  // of the fibers
  const size_t stacks_size_;

  uintptr_t arena_;  // threadgroup memory with unusable zones around every variable
  size_t arena_used_ = 0;
  Cell* cells_;  // one for each byte of the arena
  std::vector<Variable> variables_;
  uint32_t generation_ = 0;
  uint32_t epoch_ = 0;
};

}  // namespace sim
