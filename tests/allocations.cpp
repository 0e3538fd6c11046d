// Counts the allocations of a thread. Preloaded, so that it is malloc to everybody, operator new
// too.
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>

namespace {

thread_local int64_t allocations __attribute__((tls_model("initial-exec"))) = 0;

template <typename Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int64_t allocations_of_this_thread() {
  return allocations;
}

void* malloc(size_t size) {
  static auto* const real = next<void*(size_t)>("malloc");
  ++allocations;
  return real(size);
}

void* realloc(void* memory, size_t size) {
  static auto* const real = next<void*(void*, size_t)>("realloc");
  ++allocations;
  return real(memory, size);
}

void* aligned_alloc(size_t alignment, size_t size) {
  static auto* const real = next<void*(size_t, size_t)>("aligned_alloc");
  ++allocations;
  return real(alignment, size);
}

int posix_memalign(void** memory, size_t alignment, size_t size) {
  static auto* const real = next<int(void**, size_t, size_t)>("posix_memalign");
  ++allocations;
  return real(memory, alignment, size);
}

// dlsym may need it, before it can say where another one is.
void* __libc_calloc(size_t count, size_t size);
void* calloc(size_t count, size_t size) {
  ++allocations;
  return __libc_calloc(count, size);
}
}
