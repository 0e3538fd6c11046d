// A compiled shader library and what its registrations said about it.
#pragma once

#include <string>
#include <vector>

#include "kernel_abi.h"

namespace sim {

class ShaderLibrary {
 public:
  // Loads a shared object that compile_library.py made, or returns the one loaded before. Throws
  // std::runtime_error. Libraries stay for the rest of the process, so kernels and names may be
  // kept.
  static const ShaderLibrary* load(const std::string& path);

  const std::vector<Kernel>& kernels() const { return kernels_; }
  const std::vector<FunctionConstantInfo>& function_constants() const { return constants_; }

  const Kernel* find_kernel(const std::string& host_name) const;
  // In the order of their indices.
  std::vector<ThreadgroupVariableInfo> threadgroup_variables(const Kernel& kernel) const;

 private:
  friend void register_kernel(const Kernel&);
  friend void register_threadgroup_variable(const ThreadgroupVariableInfo&);
  friend void register_function_constant(const FunctionConstantInfo&);
  friend const void* constant_read_while_loading(const char* name);

  std::vector<Kernel> kernels_;
  std::vector<ThreadgroupVariableInfo> threadgroup_variables_;
  std::vector<FunctionConstantInfo> constants_;
  std::string error_;  // why it cannot be used
};

// Some value of a function constant that is read before any kernel runs, which makes loading fail.
const void* constant_read_while_loading(const char* name);

// Bytes of threadgroup memory that a kernel's variables take.
size_t static_threadgroup_bytes(const std::vector<ThreadgroupVariableInfo>& variables);

}  // namespace sim
