#include "symbolize.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>

namespace sim {
namespace {

// The frames of inlined functions come innermost first; those of MSL's own headers say nothing.
bool is_shader_frame(const std::string& location) {
  return location.find("/msl/msl_") == std::string::npos &&
         location.find("kernel_abi.h") == std::string::npos &&
         location.find("??") == std::string::npos;
}

}  // namespace

std::string source_location(const void* return_address) {
  const std::string unknown = "an unknown line";
  Dl_info module;
  if (!dladdr(return_address, &module) || !module.dli_fname) return unknown;
  // The call is in front of the address that it returns to.
  const uintptr_t offset = reinterpret_cast<uintptr_t>(return_address) - 1 -
                           reinterpret_cast<uintptr_t>(module.dli_fbase);
  char command[4096];
  snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx 2>/dev/null", module.dli_fname,
           static_cast<size_t>(offset));
  FILE* output = popen(command, "r");
  if (!output) return unknown;
  std::string found;
  char buffer[4096];
  while (fgets(buffer, sizeof buffer, output)) {
    std::string line = buffer;
    line.erase(line.find_last_not_of("\n") + 1);
    line.erase(line.find(" (discriminator") == std::string::npos ? line.size()
                                                                 : line.find(" (discriminator"));
    if (line.rfind("./", 0) == 0) line.erase(0, 2);
    if (found.empty() && is_shader_frame(line)) found = line;
  }
  pclose(output);
  return found.empty() ? unknown : found;
}

}  // namespace sim
