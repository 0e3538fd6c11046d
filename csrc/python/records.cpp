// Records and chains as Python calls them. Their types are Python's own, with vectorcall: a call of
// a pybind11 class takes longer than the kernel of a short row.
#include <torch/csrc/python_headers.h>

#include <structmember.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/python/pybind_utils.h>

#include <array>
#include <cstddef>
#include <new>

#include "../chain.h"
#include "module.h"

namespace py = pybind11;

namespace mlxnorm::python {
namespace {

using at::Tensor;

// ---- tensors of a call --------------------------------------------------------------------------

// Null where it is None. Nobody asks __torch_function__ here, so a subclass is refused.
const Tensor* read_tensor(const char* name, const char* argument, PyObject* value) {
  if (value == Py_None) {
    return nullptr;
  }
  const bool is_tensor = THPVariable_CheckExact(value);
  TORCH_CHECK(is_tensor || !THPVariable_Check(value), name, ": ", argument,
              " must be a plain tensor, got ", Py_TYPE(value)->tp_name);
  TORCH_CHECK_TYPE(is_tensor, name, ": ", argument, " must be a tensor or None, got ",
                   Py_TYPE(value)->tp_name);
  return &THPVariable_Unpack(value);
}

void check_count(const Record& record, Py_ssize_t count) {
  const auto tensors = record.op().tensors;
  TORCH_CHECK_TYPE(size_t(count) <= tensors.size(), record.name(), ": takes at most ",
                   tensors.size(), " tensors (", tensors.front().name, " to ", tensors.back().name,
                   "), got ", count);
}

// The outs of a record, one by one: a tensor or, of several, a tuple of them.
PyObject* const* read_outs(const Record& record, PyObject* out, PyObject* const& alone) {
  const size_t count = record.op().results.size();
  if (count == 1) {
    return &alone;
  }
  const bool is_tuple = PyTuple_Check(out);
  TORCH_CHECK_TYPE(is_tuple && size_t(PyTuple_GET_SIZE(out)) == count, record.name(),
                   ": out must be a tuple of ", count, " tensors, got ", Py_TYPE(out)->tp_name,
                   is_tuple ? " of " + std::to_string(PyTuple_GET_SIZE(out)) : "");
  return &PyTuple_GET_ITEM(out, 0);
}

// ---- types ----------------------------------------------------------------------------------

// An instance that holds a T. Python can make one without __init__: then the T is empty.
template <typename T>
struct Instance {
  PyObject_HEAD vectorcallfunc call;
  T value;

  static T& of(PyObject* self) { return reinterpret_cast<Instance*>(self)->value; }

  template <PyObject* (*run)(PyObject*, PyObject* const*, size_t, PyObject*)>
  static PyObject* make(PyTypeObject* type, PyObject* /*args*/, PyObject* /*kwargs*/) {
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) {
      new (&of(self)) T();
      reinterpret_cast<Instance*>(self)->call = run;
    }
    return self;
  }

  static void destroy(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    of(self).~T();
    type->tp_free(self);
    Py_DECREF(type);
  }

  template <PyObject* (*run)(PyObject*, PyObject* const*, size_t, PyObject*)>
  static py::object type(const char* name) {
    static PyMemberDef members[] = {
        {"__vectorcalloffset__", T_PYSSIZET, offsetof(Instance, call), READONLY, nullptr}, {}};
    PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(make<run>)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                           {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                           {Py_tp_members, members},
                           {0, nullptr}};
    PyType_Spec spec{name, sizeof(Instance), 0,
                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_VECTORCALL, slots};
    return py::reinterpret_steal<py::object>(PyType_FromSpec(&spec));
  }
};

using PyRecord = Instance<RecordPointer>;
using PyChain = Instance<Chain>;

const Record& record_of(PyObject* self) {
  const RecordPointer& record = PyRecord::of(self);
  TORCH_CHECK(record.defined(), "mlxnorm::Record: nothing was baked: use torch_mlxnorm.prebake");
  return *record;
}

// record(*tensors, out=...)
PyObject* call_record(PyObject* self, PyObject* const* args, size_t flags, PyObject* kwnames) {
  return with_python_errors([&] {
    const Record& record = record_of(self);
    const Py_ssize_t count = PyVectorcall_NARGS(flags);
    check_count(record, count);
    TORCH_CHECK_TYPE(kwnames != nullptr && PyTuple_GET_SIZE(kwnames) == 1 &&
                         PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "out") == 0,
                     record.name(), ": takes tensors and, by keyword, out alone");
    const OpTable& op = record.op();
    Record::Call call{&record};
    for (Py_ssize_t t = 0; t < count; ++t) {
      call.tensors[t] = read_tensor(record.name(), op.tensors[t].name, args[t]);
    }
    PyObject* const* outs = read_outs(record, args[count], args[count]);
    for (size_t r = 0; r < op.results.size(); ++r) {
      call.outs[r] = read_tensor(record.name(), op.results[r].name, outs[r]);
    }
    {
      const py::gil_scoped_release without_lock;
      Record::run({&call, 1});
    }
    return Py_NewRef(Py_None);
  });
}

// chain(*tensors)
PyObject* call_chain(PyObject* self, PyObject* const* args, size_t flags, PyObject* kwnames) {
  return with_python_errors([&] {
    const Chain& chain = PyChain::of(self);
    TORCH_CHECK(!chain.empty(),
                "mlxnorm::Chain: nothing was baked: use torch_mlxnorm.prebake_chain");
    const size_t count = PyVectorcall_NARGS(flags);
    TORCH_CHECK_TYPE(kwnames == nullptr && count == chain.slots(),
                     "mlxnorm::Chain: takes a tensor for each of its ", chain.slots(),
                     " names, got ", count, kwnames == nullptr ? "" : " and others by keyword");
    c10::SmallVector<const Tensor*, 16> tensors;
    for (size_t i = 0; i < count; ++i) {
      tensors.push_back(read_tensor("mlxnorm::Chain", "a tensor", args[i]));
    }
    {
      const py::gil_scoped_release without_lock;
      chain.run(tensors);
    }
    return Py_NewRef(Py_None);
  });
}

// ---- baking ---------------------------------------------------------------------------------

template <typename T>
T& instance_of(const py::object& type, const py::handle& self) {
  TORCH_CHECK_TYPE(py::isinstance(self, type), "not a ", py::str(type).cast<std::string>());
  return Instance<T>::of(self.ptr());
}

// A tensor, None, or the number of what calls of the chain bring.
Chain::Tensor chain_tensor(const char* name, const char* argument, PyObject* value) {
  if (PyLong_CheckExact(value)) {
    return {.slot = PyLong_AsSize_t(value)};
  }
  const Tensor* tensor = read_tensor(name, argument, value);
  return {.bound = tensor == nullptr ? Tensor() : *tensor};
}

}  // namespace

void add_records(py::module_& m) {
  const py::object record_type = PyRecord::type<call_record>("torch_mlxnorm._C.Record");
  const py::object chain_type = PyChain::type<call_chain>("torch_mlxnorm._C.Chain");
  m.attr("Record") = record_type;
  m.attr("Chain") = chain_type;

  // By the arguments of mlxnorm::_bake_OP.
  m.def("bake", [record_type](const py::handle& self, const std::string& op_name,
                              const py::args& args, const py::kwargs& kwargs) {
    HANDLE_TH_ERRORS
    RecordPointer& record = instance_of<RecordPointer>(record_type, self);
    TORCH_CHECK(!record.defined(), "mlxnorm::Record: it is baked already; make another");
    const std::string name = std::string("mlxnorm::_bake_") + op_name;
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
    auto arguments = torch::jit::createStackForSchema(op.schema(), torch::jit::tuple_slice(args),
                                                      kwargs, /*self=*/std::nullopt);
    const py::gil_scoped_release without_lock;  // Metal's compiler may take its time
    record = bake(op, std::move(arguments));
    END_HANDLE_TH_ERRORS_PYBIND
  });

  m.def("add_to_chain", [record_type, chain_type](const py::handle& self, const py::handle& baked,
                                                  const py::tuple& tensors, const py::tuple& outs) {
    HANDLE_TH_ERRORS
    Chain& chain = instance_of<Chain>(chain_type, self);
    instance_of<RecordPointer>(record_type, baked);
    const Record& record = record_of(baked.ptr());
    const OpTable& op = record.op();
    std::array<Chain::Tensor, kMaxTensors> all;
    std::array<Chain::Tensor, kMaxResults> results;
    check_count(record, Py_ssize_t(tensors.size()));
    for (size_t t = 0; t < tensors.size(); ++t) {
      all[t] = chain_tensor(record.name(), op.tensors[t].name, tensors[t].ptr());
    }
    for (size_t r = 0; r < op.results.size(); ++r) {
      results[r] = chain_tensor(record.name(), op.results[r].name, outs[r].ptr());
    }
    chain.add(PyRecord::of(baked.ptr()), {all.data(), op.tensors.size()},
              {results.data(), op.results.size()});
    END_HANDLE_TH_ERRORS_PYBIND
  });
}

}  // namespace mlxnorm::python
