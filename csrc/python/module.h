// What torch_mlxnorm._C is made of.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <stdexcept>

namespace mlxnorm::python {

// What body() gives; null, with Python's error set, where it raises. A std::invalid_argument is a
// ValueError, as pybind11 has it.
template <typename Body>
PyObject* with_python_errors(const Body& body) {
  HANDLE_TH_ERRORS
  try {
    return body();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  END_HANDLE_TH_ERRORS
}

void add_functions(pybind11::module_& m);
void add_records(pybind11::module_& m);

}  // namespace mlxnorm::python
