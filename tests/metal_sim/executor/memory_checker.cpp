#include "memory_checker.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "fiber.h"
#include "symbolize.h"

namespace sim {
namespace {

// An overflow is recognised when it ends in the zone behind (or in front of) a variable; what lies
// further away is reported as an access outside every buffer.
constexpr size_t kRedZone = 4 << 10;
constexpr size_t kArenaSize = 1 << 20;
constexpr uint16_t kSeveral = 0xffff;

void* map_lazily(size_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  return memory;
}

const char* verb(AccessKind kind) {
  return kind == AccessKind::read ? "read" : "write";
}

std::string bytes(size_t count) {
  return std::to_string(count) + (count == 1 ? " byte" : " bytes");
}

// Byte offset of an address relative to a range, as text ("-4", "1024").
std::string offset_text(uintptr_t address, uintptr_t begin) {
  return std::to_string(static_cast<intptr_t>(address - begin));
}

// Distance from an address to a range; 0 inside.
size_t distance(uintptr_t address, uintptr_t begin, size_t size) {
  if (address < begin) return begin - address;
  return address - begin < size ? 0 : address - begin - size + 1;
}

// Constant tables of a shader live in its shared object, and their reads are instrumented too.
bool is_program_data(uintptr_t address) {
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(address), &info) != 0;
}

}  // namespace

MemoryChecker::MemoryChecker()
    : stacks_(FiberStacks::instance().begin()),
      stacks_size_(FiberStacks::total_size()),
      arena_(reinterpret_cast<uintptr_t>(map_lazily(kArenaSize))),
      cells_(static_cast<Cell*>(map_lazily(kArenaSize * sizeof(Cell)))) {}

void MemoryChecker::set_device_ranges(std::vector<DeviceRange> ranges) {
  ranges_ = std::move(ranges);
  last_range_ = 0;
}

void MemoryChecker::clear_threadgroup_variables() {
  variables_.clear();
  arena_used_ = kRedZone;
}

void* MemoryChecker::add_threadgroup_variable(const std::string& name, size_t size,
                                              size_t alignment) {
  const size_t begin = (arena_used_ + alignment - 1) / alignment * alignment;
  arena_used_ = begin + size + kRedZone;
  if (arena_used_ > kArenaSize) abort();  // pipelines check the 32 KiB limit long before
  variables_.push_back({name, arena_ + begin, size});
  return reinterpret_cast<void*>(arena_ + begin);
}

void MemoryChecker::begin_threadgroup() {
  ++generation_;
  ++epoch_;
  for (const Variable& variable : variables_) {
    // NaN in every float type, for code that escapes the instrumentation.
    __builtin_memset(reinterpret_cast<void*>(variable.begin), 0xff, variable.size);
  }
}

std::optional<std::string> MemoryChecker::check(AccessKind kind, uintptr_t address, size_t size,
                                                const void* pc, const Accessor& accessor) {
  if (is_plainly_allowed(address, size)) return std::nullopt;
  if (address - arena_ < kArenaSize) return check_threadgroup(kind, address, size, pc, accessor);
  return check_elsewhere(kind, address, size);
}

std::optional<std::string> MemoryChecker::check_elsewhere(AccessKind kind, uintptr_t address,
                                                          size_t size) const {
  if (kind == AccessKind::read && is_program_data(address)) return std::nullopt;

  std::string text =
      std::string("out-of-bounds ") + verb(kind) + " of device memory: " + bytes(size);
  const DeviceRange* nearest = nullptr;
  for (const DeviceRange& range : ranges_) {
    if (!nearest || distance(address, range.begin, range.size) <
                        distance(address, nearest->begin, nearest->size)) {
      nearest = &range;
    }
  }
  if (!nearest) return text + " outside every buffer";
  return text + " at byte " + offset_text(address, nearest->begin) +
         " of the memory bound to buffer(" + std::to_string(nearest->index) + ") '" +
         nearest->name + "', which ends at byte " + std::to_string(nearest->size);
}

std::optional<std::string> MemoryChecker::check_threadgroup(AccessKind kind, uintptr_t address,
                                                            size_t size, const void* pc,
                                                            const Accessor& accessor) {
  const Variable* variable = nullptr;
  for (const Variable& candidate : variables_) {
    if (!variable || distance(address, candidate.begin, candidate.size) <
                         distance(address, variable->begin, variable->size)) {
      variable = &candidate;
    }
  }
  if (!variable || address < variable->begin || address + size > variable->begin + variable->size) {
    std::string text =
        std::string("threadgroup array overflow: ") + verb(kind) + " of " + bytes(size);
    if (!variable) return text + ", but the kernel has no threadgroup memory";
    return text + " at byte " + offset_text(address, variable->begin) + " of threadgroup memory '" +
           variable->name + "', which has " + bytes(variable->size);
  }

  for (size_t i = 0; i < size; ++i) {
    Cell& cell = cells_[address - arena_ + i];
    if (kind == AccessKind::read && cell.generation != generation_) {
      return "read of uninitialised threadgroup memory: byte " +
             offset_text(address + i, variable->begin) + " of '" + variable->name +
             "' was never written in this threadgroup (or will be, by another thread: missing "
             "barrier)";
    }
    // Accesses are ordered by a threadgroup barrier (a new epoch), or inside a simdgroup by a
    // simdgroup barrier (a new simd epoch).
    const bool after_write = cell.generation == generation_ && cell.write_epoch == epoch_ &&
                             cell.writer != accessor.thread &&
                             (cell.writer_simdgroup != accessor.simdgroup ||
                              cell.write_simd_epoch == accessor.simd_epoch);
    if (after_write) {
      return describe_race(kind, *variable, address + i, cell, /*with_write=*/true, accessor);
    }
    if (kind == AccessKind::read) {
      record_read(cell, pc, accessor);
      continue;
    }
    const bool after_read = cell.read_epoch == epoch_ && cell.reader != accessor.thread &&
                            (cell.reader_simdgroup != accessor.simdgroup ||
                             cell.read_simd_epoch == accessor.simd_epoch);
    if (after_read) {
      return describe_race(kind, *variable, address + i, cell, /*with_write=*/false, accessor);
    }
    record_write(cell, pc, accessor);
  }
  return std::nullopt;
}

void MemoryChecker::record_read(Cell& cell, const void* pc, const Accessor& accessor) {
  if (cell.read_epoch != epoch_) {
    cell.reader = accessor.thread;
    cell.reader_simdgroup = accessor.simdgroup;
  } else {
    if (cell.reader != accessor.thread) cell.reader = kSeveral;
    if (cell.reader_simdgroup != accessor.simdgroup) cell.reader_simdgroup = kSeveral;
  }
  cell.read_epoch = epoch_;
  cell.read_simd_epoch = accessor.simd_epoch;
  cell.read_pc = pc;
}

void MemoryChecker::record_write(Cell& cell, const void* pc, const Accessor& accessor) {
  cell.generation = generation_;
  cell.write_epoch = epoch_;
  cell.write_simd_epoch = accessor.simd_epoch;
  cell.writer = accessor.thread;
  cell.writer_simdgroup = accessor.simdgroup;
  cell.write_pc = pc;
}

std::string MemoryChecker::describe_race(AccessKind kind, const Variable& variable,
                                         uintptr_t address, const Cell& cell, bool with_write,
                                         const Accessor& accessor) const {
  const uint16_t other = with_write ? cell.writer : cell.reader;
  const void* other_pc = with_write ? cell.write_pc : cell.read_pc;
  const std::string who = other == kSeveral ? "several threads" : "thread " + std::to_string(other);
  return std::string("data race on threadgroup memory (missing barrier): ") + verb(kind) +
         " of byte " + offset_text(address, variable.begin) + " of '" + variable.name +
         "' by thread " + std::to_string(accessor.thread) + " and " +
         (with_write ? "write" : "read") + " by " + who + " at " + source_location(other_pc) +
         " have no barrier for threadgroup memory between them";
}

}  // namespace sim
