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

#define SIM_BUFFERS kParamsBuffer
#define SIM_BYTES (kMaxSegments * sizeof(NormParams))
#include "../translator/msl/cuda_arguments.h"
static_assert(sizeof(NormParams) % 16 == 0);

void check(cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

cudaKernel_t load(const std::string& code) {
  cudaLibrary_t library;
  check(cudaLibraryLoadData(&library, code.data(), nullptr, nullptr, 0, nullptr, nullptr, 0));
  cudaKernel_t kernel;
  check(cudaLibraryGetKernel(&kernel, library, "sim_entry_0"));
  return kernel;
}

void* address_of(const at::Tensor& tensor) {
  return static_cast<char*>(tensor.storage().mutable_data()) + byte_offset(tensor);
}

void launch(const void* kernel, Arguments& arguments, uint32_t threadgroups, uint32_t threads) {
  void* pointers[] = {&arguments};
  check(cudaLaunchKernel(kernel, dim3(threadgroups), dim3(threads), pointers, 0,
                         c10::cuda::getCurrentCUDAStream()));
}

// Of a kernel that is no op's: tensors are buffers 0, 1, ..., the number is the next one.
void dispatch(uintptr_t kernel, const std::vector<at::Tensor>& tensors, uint32_t number,
              uint32_t threadgroups, uint32_t threads) {
  Arguments arguments{};
  TORCH_CHECK(!tensors.empty() && tensors.size() < std::size(arguments.buffers));
  for (size_t i = 0; i < tensors.size(); ++i) {
    arguments.buffers[i] = address_of(tensors[i]);
  }
  std::memcpy(arguments.bytes, &number, sizeof(number));
  const c10::cuda::CUDAGuard guard(tensors[0].device());
  launch(reinterpret_cast<const void*>(kernel), arguments, threadgroups, threads);
}

// compile(op, function, constants, buffers, size) -> machine code; see __init__.py.
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
    const size_t size = table_of(key.op).segment_count * sizeof(NormParams);
    code =
        compiler()(op_name(key.op), name, constants, int(kParamsBuffer), size).cast<std::string>();
  }
  const cudaKernel_t kernel = load(code);
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

void run(std::span<const BoundLaunch> launches) {
  for (const auto& [plan, bindings] : launches) {
    Arguments arguments{};
    for (size_t i = 0; i < kParamsBuffer; ++i) {
      if (const at::Tensor* tensor = bindings.tensors[i]) {
        arguments.buffers[i] = address_of(*tensor);
      }
    }
    const c10::cuda::CUDAGuard guard(bindings.tensors[kResultBuffer] != nullptr
                                         ? bindings.tensors[kResultBuffer]->device()
                                         : bindings.tensors[kTensorBuffer]->device());
    for (size_t d = 0; d < plan->threadgroups.size(); ++d) {
      std::memcpy(arguments.bytes, plan->params_of(d), plan->segments * sizeof(NormParams));
      launch(__builtin_bit_cast(const void*, plan->pipeline), arguments, plan->threadgroups[d],
             plan->threads);
    }
  }
}

}  // namespace mlxnorm::mps

TORCH_LIBRARY_IMPL(mlxnorm, CUDA, m) {
  mlxnorm::mps::register_on(m);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("buffers") = int(mlxnorm::kParamsBuffer);
  m.def("load", [](const pybind11::bytes& code) {
    return reinterpret_cast<uintptr_t>(mlxnorm::mps::load(code));
  });
  m.def("dispatch", &mlxnorm::mps::dispatch);
  m.def("set_few_rows", [](int64_t rows) { mlxnorm::mps::few_rows = rows; });
  m.def("set_compiler", [](pybind11::object compile) { mlxnorm::mps::compiler() = compile; });
}
