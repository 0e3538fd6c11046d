// The ATen operators of the simulated device. The few that make or move memory are written here;
// all others run on the CPU, directly in the device's memory.
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <cstring>

#include "../fake_metal/stats.h"
#include "device.h"

namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr c10::DispatchKeySet kMPSKeys(c10::DispatchKey::MPS);

// A CPU tensor over the same bytes. Valid while the storage lives and nothing is encoded.
Tensor host_view(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_mps()) return tensor;
  const auto options = tensor.options().device(at::kCPU);
  const auto* storage = tensor.storage().unsafeGetStorageImpl();
  void* bytes = sim::host_address(*storage);
  Tensor view;
  if (!bytes) {
    view = at::empty_strided(tensor.sizes(), tensor.strides(), options);
  } else {
    const int64_t elements = static_cast<int64_t>(storage->nbytes() / tensor.element_size());
    view = at::from_blob(bytes, {elements}, options)
               .as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  }
  if (tensor.is_conj()) view._set_conj(true);
  if (tensor.is_neg()) view._set_neg(true);
  return view;
}

Tensor to_device(const Tensor& host) {
  Tensor tensor = at::empty_strided(host.sizes(), host.strides(), host.options().device(at::kMPS));
  host_view(tensor).copy_(host);
  return tensor;
}

// ---- operators that make tensors ----------------------------------------------------------------

at::ScalarType checked_type(std::optional<at::ScalarType> type) {
  const auto result = c10::dtype_or_default(type);
  TORCH_CHECK_TYPE(result != at::kDouble && result != at::kComplexDouble,
                   "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't "
                   "support float64. Please use float32 instead.");
  return result;
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>,
             std::optional<at::MemoryFormat> memory_format) {
  return at::detail::empty_generic(size, sim::mps_allocator(), kMPSKeys, checked_type(dtype),
                                   memory_format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, sim::mps_allocator(), kMPSKeys,
                                           checked_type(dtype));
}

const Tensor& resize_(const Tensor& self, IntArrayRef size, std::optional<at::MemoryFormat>) {
  const size_t needed =
      at::detail::computeStorageNbytesContiguous(size, self.element_size(), self.storage_offset());
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (needed > storage->nbytes()) {
    sim::synchronize();
    c10::DataPtr grown = sim::mps_allocator()->allocate(needed);
    if (storage->nbytes() != 0) {
      sim::mps_allocator()->copy_data(grown.get(), storage->data(), storage->nbytes());
    }
    storage->set_data_ptr_noswap(std::move(grown));
    storage->set_nbytes(needed);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

Tensor& set_storage(Tensor& self, c10::Storage storage, int64_t offset, IntArrayRef size,
                    IntArrayRef stride) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(storage));
  tensor->set_storage_offset(offset);
  if (stride.empty() && !size.empty()) {
    tensor->set_sizes_contiguous(size);
  } else {
    tensor->set_sizes_and_strides(size, stride);
  }
  return self;
}

// Another tensor in the same memory, perhaps the real numbers of complex ones.
Tensor alias(const Tensor& self, caffe2::TypeMeta type, IntArrayRef size, IntArrayRef stride,
             int64_t offset) {
  Tensor view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), type);
  at::native::setStrided(view, size, stride, offset);
  return view;
}

// PyTorch's own kernel for this refuses MPS in 2.8.
Tensor as_strided(const Tensor& self, IntArrayRef size, IntArrayRef stride,
                  std::optional<int64_t> offset) {
  return alias(self, self.dtype(), size, stride, offset.value_or(self.storage_offset()));
}

// ---- operators that move data -------------------------------------------------------------------

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  ++sim::stats().copies;
  sim::stats().copied_bytes += self.nbytes();
  sim::synchronize();
  host_view(self).copy_(host_view(source));
  return self;
}

Tensor copy_from(const Tensor& source, const Tensor& destination, bool non_blocking) {
  Tensor target = destination;
  return copy_(target, source, non_blocking);
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& destination) {
  if (destination.sizes() != source.sizes()) destination.resize_(source.sizes());
  return copy_from(source, destination, /*non_blocking=*/false);
}

c10::Scalar local_scalar_dense(const Tensor& tensor) {
  sim::synchronize();
  return host_view(tensor).item();
}

// ---- everything else ----------------------------------------------------------------------------

// Runs an operator on the CPU. Arguments become views of the device's memory, so in-place operators
// need no copy and a slice of a huge storage costs only the slice.
class CpuFallback {
 public:
  CpuFallback(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), schema_(op.schema()), stack_(*stack) {}

  void run() {
    const size_t argument_count = schema_.arguments().size();
    const size_t first = stack_.size() - argument_count;
    originals_.assign(stack_.begin() + first, stack_.end());
    for (size_t i = 0; i < argument_count; ++i) {
      stack_[first + i] = to_host(originals_[i], schema_.arguments()[i]);
    }
    hosts_.assign(stack_.begin() + first, stack_.end());
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack_);
    finish_out_arguments();
    const size_t return_count = schema_.returns().size();
    for (size_t i = 0; i < return_count; ++i) {
      c10::IValue& value = stack_[stack_.size() - return_count + i];
      value = from_host(value, schema_.returns()[i]);
    }
  }

 private:
  static bool is_written(const c10::Argument& argument) {
    return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
  }

  static c10::IValue to_host(const c10::IValue& value, const c10::Argument& argument) {
    if (value.isTensor()) {
      const Tensor& tensor = value.toTensor();
      // An empty `out=` will be resized, which a view cannot be.
      if (is_written(argument) && argument.is_out() && tensor.defined() && tensor.numel() == 0) {
        return at::empty({0}, tensor.options().device(at::kCPU));
      }
      return host_view(tensor);
    }
    if (value.isTensorList()) {
      std::vector<Tensor> tensors;
      for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(host_view(tensor));
      return tensors;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> tensors;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorList()) {
        tensors.push_back(tensor ? std::optional<Tensor>(host_view(*tensor)) : std::nullopt);
      }
      return tensors;
    }
    if (value.isDevice() && value.toDevice().is_mps()) return at::Device(at::kCPU);
    if (value.isGenerator()) return sim::cpu_generator(value.toGenerator());
    const bool is_generator =
        argument.type()->kind() == c10::TypeKind::OptionalType &&
        argument.type()->castRaw<c10::OptionalType>()->getElementType()->kind() ==
            c10::TypeKind::GeneratorType;
    if (is_generator) return sim::cpu_generator(std::nullopt);
    return value;
  }

  void finish_out_arguments() {
    for (size_t i = 0; i < hosts_.size(); ++i) {
      if (!originals_[i].isTensor() || !is_written(schema_.arguments()[i])) continue;
      const Tensor& original = originals_[i].toTensor();
      const Tensor& host = hosts_[i].toTensor();
      if (!original.defined() || !original.device().is_mps() || host.numel() == original.numel()) {
        continue;
      }
      original.resize_(host.sizes());
      host_view(original).copy_(host);
    }
  }

  // The argument that a returned tensor shares its memory with.
  std::optional<size_t> aliased_argument(const c10::Argument& result) const {
    if (!result.alias_info()) return std::nullopt;
    for (size_t i = 0; i < originals_.size(); ++i) {
      const auto* alias = schema_.arguments()[i].alias_info();
      if (alias && alias->beforeSets() == result.alias_info()->beforeSets()) return i;
    }
    return std::nullopt;
  }

  c10::IValue from_host(const c10::IValue& value, const c10::Argument& result) const {
    if (value.isTensor()) {
      const Tensor& host = value.toTensor();
      if (!host.defined() || !host.device().is_cpu()) return value;
      if (auto index = aliased_argument(result); index && originals_[*index].isTensor()) {
        const Tensor& original = originals_[*index].toTensor();
        if (result.alias_info()->isWrite()) return original;
        return alias(original, host.dtype(), host.sizes(), host.strides(), host.storage_offset());
      }
      return to_device(host);
    }
    if (value.isTensorList()) {
      std::vector<Tensor> tensors;
      for (const Tensor& host : value.toTensorVector()) tensors.push_back(to_device(host));
      return tensors;
    }
    return value;
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack& stack_;
  std::vector<c10::IValue> originals_;
  std::vector<c10::IValue> hosts_;
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string& name = op.schema().operator_name().name;
  const bool is_pytorch = name.rfind("aten::", 0) == 0 || name.rfind("prims::", 0) == 0;
  TORCH_CHECK_NOT_IMPLEMENTED(is_pytorch, "Could not run '", name,
                              "' with arguments from the 'MPS' backend: it has no MPS kernel, and "
                              "the simulated device runs only PyTorch's own operators on the CPU.");
  ++sim::stats().cpu_fallbacks;
  sim::synchronize();
  CpuFallback(op, stack).run();
}

TORCH_LIBRARY_IMPL(_, MPS, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, MPS, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("resize_", resize_);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("copy_", copy_);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", local_scalar_dense);
  library.impl("as_strided", as_strided);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("unfold", at::native::unfold);
}

}  // namespace
