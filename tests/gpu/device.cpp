// csrc/mps on an NVIDIA GPU: what pipeline.mm and encode.mm are for Metal. CUDA tensors take the
// place of MPS tensors; all else is the product's, unchanged.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>
#include <torch/extension.h>

#include <chrono>
#include <cstring>
#include <map>
#include <string>

#include "../../csrc/mps/launch.h"
#include "../../csrc/mps/mps.h"
#include "../../csrc/mps/once.h"

namespace mlxnorm::mps {
namespace {

#include "../translator/msl/cuda_arguments.h"
static_assert(sizeof(NormParams) * kMaxSegments <= kMaxBytes);

void check(cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

// compile(op, function, constants, bytes_buffer) -> machine code; see __init__.py.
pybind11::object& compiler() {
  static auto* instance = new pybind11::object;
  return *instance;
}

cudaKernel_t make_pipeline(const PipelineKey& key) {
  const auto start = std::chrono::steady_clock::now();
  const std::string name = function_name(key.op, key.plan, key.dtype);
  std::map<int, uint32_t> constants;
  for (const Constant& constant : constants_of(key)) {
    constants[constant.index] = constant.value;
  }
  std::string code;
  {
    const pybind11::gil_scoped_acquire gil;
    code = compiler()(op_name(key.op), name, constants, int(kParamsBuffer)).cast<std::string>();
  }
  cudaLibrary_t library;
  check(cudaLibraryLoadData(&library, code.data(), nullptr, nullptr, 0, nullptr, nullptr, 0));
  cudaKernel_t kernel;
  check(cudaLibraryGetKernel(&kernel, library, "sim_entry_0"));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  add_compiled({name, "source", seconds.count()});
  return kernel;
}

}  // namespace

Pipeline pipeline(const PipelineKey& key) {
  static auto* pipelines = new Once<uint64_t, Pipeline>;
  return pipelines->get(packed(key),
                        [&] { return __builtin_bit_cast(Pipeline, make_pipeline(key)); });
}

void run(const Launch& launch, const Bindings& bindings) {
  Arguments arguments{};
  for (size_t i = 0; i < kParamsBuffer; ++i) {
    if (const at::Tensor* tensor = bindings.tensors[i]) {
      arguments.buffers[i] =
          static_cast<char*>(tensor->storage().mutable_data()) + byte_offset(*tensor);
    }
  }
  const c10::cuda::CUDAGuard guard(bindings.tensors[kResultBuffer] != nullptr
                                       ? bindings.tensors[kResultBuffer]->device()
                                       : bindings.tensors[kTensorBuffer]->device());
  auto params = launch.params;
  for (const Dispatch& dispatch : launch.dispatches) {
    set_shares(dispatch, params);
    std::memcpy(arguments.bytes, params.data(), params.size() * sizeof(NormParams));
    void* pointers[] = {&arguments};
    check(cudaLaunchKernel(__builtin_bit_cast(const void*, launch.pipeline),
                           dim3(dispatch.threadgroups), dim3(launch.threads), pointers, 0,
                           c10::cuda::getCurrentCUDAStream()));
  }
}

}  // namespace mlxnorm::mps

TORCH_LIBRARY_IMPL(mlxnorm, CUDA, m) {
  mlxnorm::mps::register_on(m);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("set_compiler", [](pybind11::object compile) { mlxnorm::mps::compiler() = compile; });
}
