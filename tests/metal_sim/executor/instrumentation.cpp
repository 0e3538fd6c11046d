// The calls that clang's sanitizer passes put into a shader (no sanitizer runtime is linked).
//
// -fsanitize=thread announces every memory access: the address check, the uninitialised-memory
// check and the race check hang on it. -fsanitize=alignment,bounds,... announces undefined
// behaviour together with its line. The struct layouts below are the compiler's interface. The
// linker puts __wrap_ before the names (compile_library.py), so that the runtime of a
// sanitizer that the whole process runs under does not answer instead.
#include <stdint.h>
#include <string.h>

#include <string>

#include "execution.h"

namespace {

using sim::AccessKind;

void check(AccessKind kind, const void* address, size_t size, const void* pc) {
  // A library's constructors are instrumented as well; only GPU threads are judged.
  if (!sim::current || !sim::current->is_thread_running()) return;
  sim::current->check_access(kind, address, size, pc);
}

struct SourceLocation {
  const char* file;
  uint32_t line;
  uint32_t column;
};

struct TypeDescriptor {
  uint16_t kind;
  uint16_t info;
  char name[1];  // quoted, null-terminated
};

struct TypeMismatchData {
  SourceLocation location;
  const TypeDescriptor* type;
  uint8_t log2_alignment;
  uint8_t check_kind;
};

struct OutOfBoundsData {
  SourceLocation location;
  const TypeDescriptor* array_type;
  const TypeDescriptor* index_type;
};

struct OverflowData {
  SourceLocation location;
};

[[noreturn]] void fail_at(const std::string& message, const SourceLocation& location) {
  std::string file = location.file;
  if (file.rfind("./", 0) == 0) file.erase(0, 2);
  sim::current->fail(message + ", at " + file + ":" + std::to_string(location.line));
}

}  // namespace

extern "C" {

#define SIM_EXPORT __attribute__((visibility("default")))
#define SIM_ACCESS(size)                                                  \
  SIM_EXPORT void __wrap___tsan_read##size(void* address) {               \
    check(AccessKind::read, address, size, __builtin_return_address(0));  \
  }                                                                       \
  SIM_EXPORT void __wrap___tsan_write##size(void* address) {              \
    check(AccessKind::write, address, size, __builtin_return_address(0)); \
  }                                                                       \
  SIM_EXPORT void __wrap___tsan_unaligned_read##size(void* address) {     \
    check(AccessKind::read, address, size, __builtin_return_address(0));  \
  }                                                                       \
  SIM_EXPORT void __wrap___tsan_unaligned_write##size(void* address) {    \
    check(AccessKind::write, address, size, __builtin_return_address(0)); \
  }
SIM_ACCESS(1)
SIM_ACCESS(2)
SIM_ACCESS(4)
SIM_ACCESS(8)
SIM_ACCESS(16)
#undef SIM_ACCESS

SIM_EXPORT void __wrap___tsan_init() {}

SIM_EXPORT void* __wrap___tsan_memcpy(void* to, const void* from, size_t size) {
  check(AccessKind::read, from, size, __builtin_return_address(0));
  check(AccessKind::write, to, size, __builtin_return_address(0));
  return memcpy(to, from, size);
}
SIM_EXPORT void* __wrap___tsan_memmove(void* to, const void* from, size_t size) {
  check(AccessKind::read, from, size, __builtin_return_address(0));
  check(AccessKind::write, to, size, __builtin_return_address(0));
  return memmove(to, from, size);
}
SIM_EXPORT void* __wrap___tsan_memset(void* to, int value, size_t size) {
  check(AccessKind::write, to, size, __builtin_return_address(0));
  return memset(to, value, size);
}

SIM_EXPORT void __wrap___ubsan_handle_type_mismatch_v1(TypeMismatchData* data, uintptr_t address) {
  const size_t alignment = size_t{1} << data->log2_alignment;
  fail_at("misaligned access: an object of type " + std::string(data->type->name) +
              " needs an alignment of " + std::to_string(alignment) + " bytes; its address is " +
              std::to_string(address % alignment) + " bytes past one",
          data->location);
}
SIM_EXPORT void __wrap___ubsan_handle_out_of_bounds(OutOfBoundsData* data, uintptr_t index) {
  fail_at("array overflow: index " + std::to_string(static_cast<intptr_t>(index)) +
              " is outside an array of type " + data->array_type->name,
          data->location);
}
SIM_EXPORT void __wrap___ubsan_handle_divrem_overflow(OverflowData* data, uintptr_t, uintptr_t) {
  fail_at("integer division by zero or overflow", data->location);
}
SIM_EXPORT void __wrap___ubsan_handle_shift_out_of_bounds(OverflowData* data, uintptr_t,
                                                          uintptr_t) {
  fail_at("shift by more than the type's width", data->location);
}

}  // extern "C"
