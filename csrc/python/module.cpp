// torch_mlxnorm._C: importing it registers the operators. What it offers to Python besides is
// called without the dispatcher.
#include <torch/csrc/utils/pybind.h>

#include "../ops/ops.h"
#include "module.h"

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("ops", ops);
  m.def("extras", extras);
  m.def("likes", likes);
  m.def("roles", roles);
  mlxnorm::python::add_functions(m);
  mlxnorm::python::add_records(m);
}
