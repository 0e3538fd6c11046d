// How generated code registers kernels and fetches what they need while running.
#pragma once

#include "kernel_abi.h"

namespace sim {

// ---- function constants -------------------------------------------------------------------------

template <class T>
constexpr ConstantType constant_type() {
  if constexpr (std::is_same_v<T, bool>)
    return ConstantType::boolean;
  else if constexpr (std::is_same_v<T, int8_t> || std::is_same_v<T, char>)
    return ConstantType::int8;
  else if constexpr (std::is_same_v<T, uint8_t>)
    return ConstantType::uint8;
  else if constexpr (std::is_same_v<T, int16_t>)
    return ConstantType::int16;
  else if constexpr (std::is_same_v<T, uint16_t>)
    return ConstantType::uint16;
  else if constexpr (std::is_same_v<T, int32_t>)
    return ConstantType::int32;
  else if constexpr (std::is_same_v<T, uint32_t>)
    return ConstantType::uint32;
  else if constexpr (std::is_same_v<T, int64_t>)
    return ConstantType::int64;
  else if constexpr (std::is_same_v<T, uint64_t>)
    return ConstantType::uint64;
  else if constexpr (std::is_same_v<T, half>)
    return ConstantType::half_float;
  else if constexpr (std::is_same_v<T, bfloat>)
    return ConstantType::brain_float;
  else {
    static_assert(std::is_same_v<T, float>, "unsupported type of a function constant");
    return ConstantType::single_float;
  }
}

template <class T, int Index>
class FunctionConstant {
 public:
  FunctionConstant(const char* name, Site site) : info_{Index, name, constant_type<T>(), site} {
    register_function_constant(info_);
  }
  // Neither this object nor the value is memory that a kernel could name.
  __attribute__((no_sanitize("thread"))) operator T() const {
    return *static_cast<const T*>(function_constant_value(info_));
  }
  __attribute__((no_sanitize("thread"))) bool is_defined() const {
    return function_constant_is_defined(info_);
  }

 private:
  FunctionConstantInfo info_;
};

// ---- threadgroup variables ----------------------------------------------------------------------

template <auto Function, int Index, class T, const char* Name>
struct ThreadgroupVariable {
  static bool enroll() {
    register_threadgroup_variable(
        {reinterpret_cast<const void*>(Function), Index, Name, sizeof(T), alignof(T)});
    return true;
  }
  static inline const bool enrolled = enroll();
};

template <auto Function, int Index, class T, const char* Name>
METAL_FUNC T& threadgroup_variable() {
  // Naming `enrolled` makes the compiler emit it, which enrolls the variable at load time.
  (void)&ThreadgroupVariable<Function, Index, T, Name>::enrolled;
  return *static_cast<T*>(threadgroup_variable_address(Index));
}

// ---- parameters ---------------------------------------------------------------------------------

template <class T>
constexpr ParameterType parameter_type() {
  using Pointee = std::remove_pointer_t<std::remove_reference_t<T>>;
  if constexpr (std::is_void_v<Pointee>) {
    return {1, 1, false};
  } else {
    return {sizeof(Pointee), alignof(Pointee), std::is_reference_v<T>};
  }
}

template <class T>
METAL_FUNC T fetch_argument(size_t parameter, const Argument& argument) {
  if constexpr (std::is_pointer_v<T> || std::is_reference_v<T>) {
    using Pointee = std::remove_pointer_t<std::remove_reference_t<T>>;
    void* address = argument.kind == ArgumentKind::threadgroup ? threadgroup_argument(parameter)
                                                               : buffer_argument(parameter);
    if constexpr (std::is_reference_v<T>) {
      return *static_cast<Pointee*>(address);
    } else {
      return static_cast<T>(address);
    }
  } else {
    const UInt3 value = builtin_argument(argument.kind);
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(value.x);
    } else if constexpr (sizeof(T) == 2 * sizeof(T().x)) {
      return T(value.x, value.y);
    } else {
      return T(value.x, value.y, value.z);
    }
  }
}

// Traits is the struct that cpp_backend.py writes in front of the kernel.
template <auto Function, class Traits>
class KernelRegistration {
 public:
  explicit KernelRegistration(const char* host_name) { enroll(host_name, Function); }

 private:
  template <class... Parameters>
  static void enroll(const char* host_name, void (*)(Parameters...)) {
    static constexpr ParameterType types[] = {parameter_type<Parameters>()..., {}};
    Kernel kernel;
    kernel.name = host_name;
    kernel.site = Traits::site;
    kernel.function = reinterpret_cast<const void*>(Function);
    kernel.run = [] { run(Function, std::index_sequence_for<Parameters...>()); };
    kernel.max_threads = Traits::max_threads;
    kernel.argument_count = sizeof...(Parameters);
    kernel.arguments = Traits::arguments;
    kernel.types = types;
    register_kernel(kernel);
  }

  template <class... Parameters, size_t... I>
  static void run(void (*)(Parameters...), std::index_sequence<I...>) {
    Function(fetch_argument<Parameters>(I, Traits::arguments[I])...);
  }
};

}  // namespace sim

namespace metal {

template <class T, int Index>
METAL_FUNC bool is_function_constant_defined(const sim::FunctionConstant<T, Index>& constant) {
  return constant.is_defined();
}

}  // namespace metal
