#include "shader_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>

namespace sim {
namespace {

std::mutex loading_mutex;
ShaderLibrary* loading = nullptr;  // the library whose constructors run right now

}  // namespace

const ShaderLibrary* ShaderLibrary::load(const std::string& path) {
  // The constructors of a shared object run only the first time that it is opened.
  static auto* loaded = new std::map<std::string, std::unique_ptr<ShaderLibrary>>;
  std::lock_guard<std::mutex> lock(loading_mutex);
  std::unique_ptr<ShaderLibrary>& known = (*loaded)[path];
  if (known) return known.get();
  auto library = std::make_unique<ShaderLibrary>();
  loading = library.get();
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  loading = nullptr;
  if (!handle) throw std::runtime_error(dlerror());
  if (!library->error_.empty()) throw std::runtime_error(library->error_);
  known = std::move(library);
  return known.get();
}

const Kernel* ShaderLibrary::find_kernel(const std::string& host_name) const {
  for (const Kernel& kernel : kernels_) {
    if (host_name == kernel.name) return &kernel;
  }
  return nullptr;
}

std::vector<ThreadgroupVariableInfo> ShaderLibrary::threadgroup_variables(
    const Kernel& kernel) const {
  std::vector<ThreadgroupVariableInfo> result;
  for (const auto& variable : threadgroup_variables_) {
    if (variable.function == kernel.function) result.push_back(variable);
  }
  std::sort(result.begin(), result.end(),
            [](const auto& a, const auto& b) { return a.index < b.index; });
  return result;
}

size_t static_threadgroup_bytes(const std::vector<ThreadgroupVariableInfo>& variables) {
  size_t bytes = 0;
  for (const auto& variable : variables) {
    bytes = (bytes + variable.alignment - 1) / variable.alignment * variable.alignment;
    bytes += variable.size;
  }
  return bytes;
}

void register_kernel(const Kernel& kernel) {
  loading->kernels_.push_back(kernel);
}

void register_threadgroup_variable(const ThreadgroupVariableInfo& variable) {
  loading->threadgroup_variables_.push_back(variable);
}

void register_function_constant(const FunctionConstantInfo& constant) {
  // Every part of a library that was compiled in parts declares all constants.
  for (const auto& known : loading->constants_) {
    if (known.index == constant.index) return;
  }
  loading->constants_.push_back(constant);
}

const void* constant_read_while_loading(const char* name) {
  static const uint64_t zero = 0;
  loading->error_ = "the initializer of a program-scope variable reads function constant '" +
                    std::string(name) +
                    "': the simulator supports that outside namespaces, types and functions";
  return &zero;
}

}  // namespace sim
