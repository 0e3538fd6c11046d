// Operators as the functions of torch_mlxnorm/functional.py call them in eager mode: arguments in
// the order of the schema, read by the op's table and not by name, and from here to PyTorch's
// dispatcher, as PyTorch's own generated bindings go. Whatever is not a plain call of plain tensors
// is left to torch.ops.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <memory>
#include <optional>
#include <utility>

#include "../call.h"
#include "module.h"

namespace py = pybind11;

namespace mlxnorm::python {
namespace {

// A value of a choice as Python and as the dispatcher has it.
struct ChoiceValue {
  py::object name;
  c10::IValue value;
};

// The stack of a call, whose memory a thread keeps for its next one.
class Arguments {
 public:
  Arguments() : stack(std::exchange(kept, {})) {}
  ~Arguments() {
    stack.clear();
    kept = std::move(stack);
  }
  Arguments(const Arguments&) = delete;

  torch::jit::Stack stack;

 private:
  static thread_local torch::jit::Stack kept;
};
thread_local torch::jit::Stack Arguments::kept;

class Function {
 public:
  Function(const OpTable& op, py::object otherwise)
      : op_(op),
        functional_(c10::Dispatcher::singleton().findSchemaOrThrow(op.name, "")),
        write_(c10::Dispatcher::singleton().findSchemaOrThrow(op.name, "out")),
        otherwise_(std::move(otherwise)) {
    for (const Option option : op.options) {
      std::vector<ChoiceValue>& values = choices_.emplace_back();
      if (option.kind == Option::choice) {
        for (const std::string_view name : kChoiceSpecs[option.which].values) {
          const std::string text(name);
          values.push_back(
              {py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text.c_str())), text});
        }
      }
    }
  }

  // Of the arguments of the schema and `out`.
  PyObject* operator()(PyObject* const* args, size_t count) const {
    Arguments arguments;
    torch::jit::Stack& stack = arguments.stack;
    stack.reserve(size() + kMaxResults);
    PyObject* const out = args[count - 1];
    if (count != size() + 1 || is_watched() || !read(args, stack) || !read_outs(out, stack)) {
      stack.clear();
      return PyObject_Vectorcall(otherwise_.ptr(), args, count, nullptr);
    }
    {
      std::optional<py::gil_scoped_release> without_lock;
      if (!is_short(stack[0].toTensor())) {
        without_lock.emplace();
      }
      (out == Py_None ? functional_ : write_).callBoxed(&stack);
    }
    return out == Py_None ? results(stack) : Py_NewRef(out);
  }

 private:
  size_t size() const { return argument_of_out(op_, 0); }

  // Other threads of Python may run during a call, unless it takes some microseconds: giving the
  // interpreter's lock back and taking it again is a tenth of that.
  static bool is_short(const at::Tensor& first) {
    constexpr int64_t kShort = 1 << 14;
    return first.device().is_cpu() && first.numel() <= kShort;
  }

  // Does somebody look at calls of torch.ops who is not asked by the dispatcher?
  static bool is_watched() {
    return at::impl::torch_function_mode_enabled() || torch::jit::tracer::isTracing();
  }

  // False where an argument is not what plain calls have.
  bool read(PyObject* const* args, torch::jit::Stack& stack) const {
    size_t i = 0;
    for (size_t t = 0; t < op_.tensors.size(); ++t) {
      if (t == op_.positional && !read_eps(args[i++], stack)) {
        return false;
      }
      const bool may_be_none = op_.tensors[t].passing != Passing::required;
      if (!(may_be_none && args[i] == Py_None) && !THPVariable_CheckExact(args[i])) {
        return false;
      }
      push_tensor(args[i++], stack);
    }
    if (op_.positional == op_.tensors.size() && !read_eps(args[i++], stack)) {
      return false;
    }
    for (size_t o = 0; o < op_.options.size(); ++o) {
      if (!read_option(o, args[i++], stack)) {
        return false;
      }
    }
    return true;
  }

  static void push_tensor(PyObject* value, torch::jit::Stack& stack) {
    value == Py_None ? stack.emplace_back() : stack.emplace_back(THPVariable_Unpack(value));
  }

  static bool read_eps(PyObject* value, torch::jit::Stack& stack) {
    if (value == Py_None) {
      stack.emplace_back();
      return true;
    }
    return read_float(value, stack);
  }

  static bool read_float(PyObject* value, torch::jit::Stack& stack) {
    if (!PyFloat_CheckExact(value)) {
      return false;
    }
    stack.emplace_back(PyFloat_AS_DOUBLE(value));
    return true;
  }

  bool read_option(size_t o, PyObject* value, torch::jit::Stack& stack) const {
    const Option option = op_.options[o];
    switch (option.kind) {
      case Option::number:
        return read_float(value, stack);
      case Option::integer: {
        int overflow = 0;
        const bool is_integer = PyLong_CheckExact(value);
        stack.emplace_back(
            int64_t(is_integer ? PyLong_AsLongLongAndOverflow(value, &overflow) : 0));
        return is_integer && overflow == 0;
      }
      case Option::choice:
        break;
    }
    if (choices_[o].empty()) {
      stack.emplace_back(value == Py_True);
      return value == Py_True || value == Py_False;
    }
    for (const ChoiceValue& choice : choices_[o]) {
      // Names in a program are interned, as these are.
      if (choice.name.ptr() == value ||
          (PyUnicode_CheckExact(value) && PyUnicode_Compare(choice.name.ptr(), value) == 0)) {
        stack.push_back(choice.value);
        return true;
      }
    }
    return false;
  }

  bool read_outs(PyObject* out, torch::jit::Stack& stack) const {
    const size_t count = op_.results.size();
    if (out == Py_None) {
      return true;
    }
    const bool one_by_one = count > 1;
    if (one_by_one && (!PyTuple_CheckExact(out) || size_t(PyTuple_GET_SIZE(out)) != count)) {
      return false;
    }
    for (size_t r = 0; r < count; ++r) {
      PyObject* const tensor = one_by_one ? PyTuple_GET_ITEM(out, r) : out;
      if (!THPVariable_CheckExact(tensor)) {
        return false;
      }
      push_tensor(tensor, stack);
    }
    return true;
  }

  PyObject* results(torch::jit::Stack& stack) const {
    if (stack.size() == 1) {
      return THPVariable_Wrap(std::move(stack[0]).toTensor());
    }
    auto tuple = py::reinterpret_steal<py::object>(PyTuple_New(Py_ssize_t(stack.size())));
    for (size_t r = 0; tuple && r < stack.size(); ++r) {
      PyTuple_SET_ITEM(tuple.ptr(), Py_ssize_t(r),
                       THPVariable_Wrap(std::move(stack[r]).toTensor()));
    }
    return tuple.release().ptr();
  }

  const OpTable& op_;
  c10::OperatorHandle functional_, write_;
  py::object otherwise_;                           // takes the same arguments
  std::vector<std::vector<ChoiceValue>> choices_;  // of options; empty where they have no names
};

PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  return with_python_errors([&] {
    TORCH_CHECK_TYPE(count > 0, "mlxnorm: a function needs arguments");
    return (*static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr)))(args,
                                                                                size_t(count));
  });
}

}  // namespace

void add_functions(py::module_& m) {
  // The eager function of an op; `otherwise` is called with what it leaves to others.
  m.def("function", [](const std::string& name, py::object otherwise) {
    static PyMethodDef definition{"function",
                                  reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
                                  METH_FASTCALL, nullptr};
    // They live as long as the process, as operators do.
    const auto* function = new Function(table_of(std::string_view(name)), std::move(otherwise));
    const py::capsule self(function);
    return py::reinterpret_steal<py::object>(PyCFunction_NewEx(&definition, self.ptr(), nullptr));
  });
}

}  // namespace mlxnorm::python
