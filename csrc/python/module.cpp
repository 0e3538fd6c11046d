// torch_mlxnorm._C: importing it registers the operators. What it offers to Python besides is
// called without the dispatcher.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <cstring>
#include <optional>
#include <string>

#include "../record.h"

namespace py = pybind11;

namespace {

// Each op's tensors with their roles, in the order of the README and of the schemas.
py::dict ops() {
  py::dict result;
  for (const mlxnorm::OpTable& op : mlxnorm::kOps) {
    py::dict roles;
    for (const mlxnorm::TensorSpec& tensor : op.tensors) {
      roles[tensor.name] = mlxnorm::kRoleNames[size_t(tensor.role)];
    }
    result[mlxnorm::op_name(op.op)] = roles;
  }
  return result;
}

// The tensors that results are like, by op and result.
py::dict likes() {
  py::dict result;
  for (const mlxnorm::OpTable& op : mlxnorm::kOps) {
    py::dict names;
    for (const mlxnorm::ResultSpec& spec : op.results) {
      names[spec.name] = spec.like;
    }
    result[mlxnorm::op_name(op.op)] = names;
  }
  return result;
}

// Those that the usual call does not have, of each op.
py::dict extras() {
  py::dict result;
  for (const mlxnorm::OpTable& op : mlxnorm::kOps) {
    py::list names;
    for (const mlxnorm::TensorSpec& tensor : op.tensors) {
      if (tensor.passing == mlxnorm::Passing::extra) {
        names.append(tensor.name);
      }
    }
    result[mlxnorm::op_name(op.op)] = names;
  }
  return result;
}

// How many dimensions belong to a row of a tensor with a role, whether the others broadcast, and
// whether it may have one element instead.
py::dict roles() {
  py::dict result;
  for (size_t i = 0; i < mlxnorm::kRoles; ++i) {
    const auto role = mlxnorm::Role(i);
    result[mlxnorm::kRoleNames[i]] = py::make_tuple(
        mlxnorm::row_dimensions(role), mlxnorm::broadcasts(role), mlxnorm::may_be_scalar(role));
  }
  return result;
}

// Python can make an object without calling __init__. Memory of zeros, which pybind11 takes from
// here then, holds no record.
struct OwnedRecord {
  mlxnorm::RecordPointer record;

  static void* operator new(size_t size) { return std::memset(::operator new(size), 0, size); }
  static void operator delete(void* p) { ::operator delete(p); }
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("ops", ops);
  m.def("extras", extras);
  m.def("likes", likes);
  m.def("roles", roles);
  py::class_<OwnedRecord>(m, "RmsNormRecord")
      .def(py::init([](const at::Tensor& like, at::ScalarType dtype, int64_t rows, int64_t dim,
                       std::optional<at::ScalarType> weight_dtype, std::optional<double> eps,
                       double weight_offset, const std::string& casting_mode) {
        HANDLE_TH_ERRORS
        const py::gil_scoped_release without_lock;  // Metal's compiler may take its time
        return new OwnedRecord{
            mlxnorm::bake(like, dtype, rows, dim, weight_dtype, eps, weight_offset, casting_mode)};
        END_HANDLE_TH_ERRORS_PYBIND
      }))
      .def("__call__",
           torch::wrap_pybind_function_no_gil([](const OwnedRecord& owned, const at::Tensor& x,
                                                 const mlxnorm::OptionalTensor& weight,
                                                 const at::Tensor& out) {
             TORCH_CHECK(owned.record.defined(),
                         "mlxnorm::RmsNormRecord: nothing was baked: __init__ was not called");
             (*owned.record)(x, weight, out);
           }),
           py::arg("x"), py::arg("weight"), py::arg("out"));
}
