// The functions that metal_sim/__init__.py calls through ctypes.
#include <cstring>

#include "foundation.h"
#include "metal_objects.h"
#include "stats.h"

#define SIM_API extern "C" __attribute__((visibility("default")))

SIM_API void metal_sim_configure(const char* python, const char* module_dir) {
  sim::compiler_config().python = python;
  sim::compiler_config().module_dir = module_dir;
}

SIM_API void metal_sim_refuse_metallibs(bool refuse) {
  sim::compiler_config().refuses_metallibs = refuse;
}

SIM_API void metal_sim_only_count(bool only_count) {
  sim::only_counts = only_count;
}

// Empty: compile again.
SIM_API void metal_sim_fail_compilations(const char* text) {
  sim::compiler_config().set_failure(text);
}

// order: 0 forward, 1 reversed, 2 shuffled.
SIM_API void metal_sim_set_thread_order(int order, uint64_t seed) {
  sim::set_thread_order(static_cast<sim::ThreadOrder>(order), seed);
}

// Writes "name value" lines into the buffer. Returns the size it needs.
static size_t write_lines(const std::string& lines, char* buffer, size_t size) {
  if (size > 0) {
    const size_t count = std::min(lines.size(), size - 1);
    std::memcpy(buffer, lines.data(), count);
    buffer[count] = '\0';
  }
  return lines.size() + 1;
}

SIM_API size_t metal_sim_stats(char* buffer, size_t size) {
  std::string lines;
  sim::Stats& stats = sim::stats();
#define SIM_PRINT_COUNTER(name) lines += std::string(#name " ") + std::to_string(stats.name) + "\n";
  SIM_FOR_EACH_COUNTER(SIM_PRINT_COUNTER)
#undef SIM_PRINT_COUNTER
  return write_lines(lines, buffer, size);
}

SIM_API void metal_sim_reset_stats() {
  sim::Stats& stats = sim::stats();
#define SIM_RESET_COUNTER(name) stats.name = 0;
  SIM_FOR_EACH_COUNTER(SIM_RESET_COUNTER)
#undef SIM_RESET_COUNTER
}

SIM_API size_t metal_sim_live_objects(char* buffer, size_t size) {
  std::string lines;
  for (const auto& [name, count] : sim::live_objects()) {
    lines += name + " " + std::to_string(count) + "\n";
  }
  return write_lines(lines, buffer, size);
}

SIM_API size_t metal_sim_kernels_run(char* buffer, size_t size) {
  std::string lines;
  for (const auto& [name, count] : sim::kernels_run()) {
    lines += name + " " + std::to_string(count) + "\n";
  }
  return write_lines(lines, buffer, size);
}
