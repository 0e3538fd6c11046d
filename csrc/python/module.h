// What torch_mlxnorm._C is made of.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace mlxnorm::python {

void add_functions(pybind11::module_& m);
void add_records(pybind11::module_& m);

}  // namespace mlxnorm::python
