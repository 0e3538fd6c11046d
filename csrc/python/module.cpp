// torch_mlxnorm._C: importing it registers the operators. What it offers to Python besides is
// called without the dispatcher.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>

#include "../record.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  using mlxnorm::RmsNormRecord;
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
