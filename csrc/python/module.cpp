// torch_mlxnorm._C: importing it registers the operators. What it offers to Python besides is
// called without the dispatcher.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../ops/ops.h"
#include "../record.h"

namespace py = pybind11;

namespace {

std::map<std::string, std::vector<std::string>> activations() {
  std::map<std::string, std::vector<std::string>> result;
#define MLXNORM_ACTIVATIONS(op)                             \
  for (const char* name : mlxnorm::ops::op::kActivations) { \
    result[#op].emplace_back(name);                         \
  }
  MLXNORM_FOR_EACH_OP(MLXNORM_ACTIVATIONS)
#undef MLXNORM_ACTIVATIONS
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using mlxnorm::RmsNormRecord;
  m.def("activations", activations);
  py::class_<RmsNormRecord>(m, "RmsNormRecord")
      .def(py::init([](int64_t address) {
        return std::unique_ptr<RmsNormRecord>(reinterpret_cast<RmsNormRecord*>(address));
      }))
      .def(
          "__call__",
          torch::wrap_pybind_function_no_gil([](const RmsNormRecord& record, const at::Tensor& x,
                                                const mlxnorm::OptionalTensor& weight,
                                                const at::Tensor& out) { record(x, weight, out); }),
          py::arg("x"), py::arg("weight"), py::arg("out"));
}
