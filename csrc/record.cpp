#include "record.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/core/TensorOptions.h>

#include "channel_layout.h"
#include "versions.h"

namespace mlxnorm {
namespace {

std::string dtype_name(at::ScalarType type) {
  return std::string(c10::getDtypeNames(type).first);
}

c10::DispatchKeySet backend_of(c10::Device device) {
  return c10::DispatchKeySet(
      c10::computeDispatchKey(/*dtype=*/std::nullopt, /*layout=*/std::nullopt, device));
}

// Without the dispatcher nobody unwraps subclasses, functorch's tensors or lazy negations.
c10::DispatchKeySet keys_that_count(const at::Tensor& tensor) {
  return tensor.key_set() - c10::autograd_dispatch_keyset_with_ADInplaceOrView -
         c10::autocast_dispatch_keyset;
}

const c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

}  // namespace

Record::Record(const NormCall& call, const at::Tensor* const* outs, c10::Device device)
    : op_(call.op()),
      name_(std::string(op_.name) + " record"),
      device_(device),
      keys_(backend_of(device)),
      options_(call.options()) {
  for (size_t t = 0; t < op_.tensors.size(); ++t) {
    tensors_[t].name = op_.tensors[t].name;
    if (call.tensor(t)) {
      tensors_[t] = operand(call.tensor(t), call.across_heads());
    }
  }
  for (size_t r = 0; r < op_.results.size(); ++r) {
    const Role role = has_channels(op_) ? Role::channels : Role::input;
    outs_[r] = operand({op_.results[r].name, *outs[r], role}, call.across_heads());
  }
  bake_parts(call, outs);
}

Record::Operand Record::operand(const Argument& argument, bool across_heads) const {
  const at::Tensor& t = *argument.tensor;
  Operand result{argument.name, /*given=*/true, t.scalar_type()};
  result.sizes.assign(t.sizes().begin(), t.sizes().end());
  result.strides.assign(t.strides().begin(), t.strides().end());
  result.kept = row_dimensions(argument.role);
  if (has_channels(op_)) {
    result.kept = t.dim();
  } else if (across_heads && (argument.role == Role::input || argument.role == Role::angles)) {
    result.kept = 2;
  }
  result.kept = std::min(result.kept, t.dim());
  return result;
}

void Record::bake_parts(const NormCall& call, const at::Tensor* const* outs) {
  for (size_t s = 0; s < op_.segment_count; ++s) {
    const Segment& segment = op_.segments[s];
    if (call.like(segment.first_result).numel() == 0) {
      continue;
    }
    if (has_channels(op_)) {
      const LaidOutChannels laid_out(call, *call.first().tensor, *outs[0]);
      TORCH_CHECK(laid_out.fits, name_,
                  ": x and out would be copied at every call; make them "
                  "contiguous, or channels-last, got strides ",
                  call.first().tensor->strides(), " and ", outs[0]->strides(), " for shape ",
                  outs[0]->sizes());
      check_copies(call, laid_out.tensors, segment, laid_out.has_copies());
      parts_.push_back({&segment, laid_out.layout});
    } else {
      const LaidOutCall laid_out(call, outs, s);
      check_copies(call, laid_out.tensors, segment, laid_out.has_copies());
      parts_.push_back({&segment, laid_out.layout});
    }
  }
}

void Record::check_copies(const NormCall& call, const TensorPointers& tensors,
                          const Segment& segment, bool copied) const {
  for (size_t i = 0; copied && i < segment.count; ++i) {
    const Argument& argument = call.tensor(segment, i);
    TORCH_CHECK(tensors[i] == nullptr || tensors[i] == argument.tensor, name_, ": ", argument.name,
                " would be copied at every call; make it contiguous, expanded to all rows if it is "
                "already, got strides ",
                argument.tensor->strides(), " for shape ", argument.tensor->sizes());
  }
}

bool Record::fits(const Operand& operand, const at::Tensor& tensor) const {
  return tensor.scalar_type() == operand.dtype && tensor.device() == device_ &&
         keys_that_count(tensor) == keys_ && tensor.sizes() == operand.sizes &&
         tensor.strides() == operand.strides;
}

void Record::check_fit(const Operand& operand, const at::Tensor* tensor) const {
  TORCH_CHECK((tensor != nullptr) == operand.given, name_, ": ", operand.name, " must be ",
              operand.given ? "a tensor" : "None", " as baked, got ",
              tensor != nullptr ? "a tensor" : "None");
  if (tensor == nullptr || fits(operand, *tensor)) {
    return;
  }
  const at::Tensor& t = *tensor;
  TORCH_CHECK_TYPE(t.scalar_type() == operand.dtype, name_, ": ", operand.name, " must be ",
                   dtype_name(operand.dtype), " as baked, got ", dtype_name(t.scalar_type()));
  TORCH_CHECK(t.device() == device_, name_, ": ", operand.name, " must be on ", device_,
              " as baked, got ", t.device());
  TORCH_CHECK(keys_that_count(t) == keys_, name_, ": ", operand.name,
              " must be a plain tensor, got ", t.toString());
  if (lie_alike(operand.sizes, operand.strides, t.sizes(), t.strides(), operand.kept)) {
    return;
  }
  TORCH_CHECK(t.sizes() == operand.sizes, name_, ": ", operand.name, " must have shape ",
              at::IntArrayRef(operand.sizes), " as baked, got ", t.sizes());
  TORCH_CHECK(false, name_, ": ", operand.name, " must have strides ",
              at::IntArrayRef(operand.strides), " as baked, got ", t.strides(), " for shape ",
              t.sizes());
}

void Record::check_derivatives(const Operand& operand, const at::Tensor& tensor) const {
  if (tensor.unsafeGetTensorImpl()->autograd_meta() == nullptr) {
    return;
  }
  TORCH_CHECK(!c10::GradMode::is_enabled() || !tensor.requires_grad(), name_,
              ": inference only, but ", operand.name,
              " requires grad; call it under torch.no_grad()");
  TORCH_CHECK_NOT_IMPLEMENTED(!tensor._fw_grad(/*level=*/0).defined(), name_,
                              ": inference only, it has no forward-mode derivative, but ",
                              operand.name, " has a tangent");
}

void Record::check_overlaps(const Call& call, size_t r) const {
  const at::Tensor& out = *call.outs[r];
  const c10::StorageImpl* const storage = storage_of(out);
  for (size_t t = 0; t < op_.tensors.size(); ++t) {
    if (call.tensors[t] != nullptr && storage_of(*call.tensors[t]) == storage) {
      check_no_overlap(name(), {outs_[r].name, out}, {tensors_[t].name, *call.tensors[t]},
                       may_be_same(op_, r, t));
    }
  }
  for (size_t other = 0; other < r; ++other) {
    if (storage_of(*call.outs[other]) == storage) {
      check_no_overlap(name(), {outs_[r].name, out}, {outs_[other].name, *call.outs[other]},
                       /*allow_same=*/false);
    }
  }
}

void Record::check(const Call& call) const {
  for (size_t t = 0; t < op_.tensors.size(); ++t) {
    check_fit(tensors_[t], call.tensors[t]);
    if (call.tensors[t] != nullptr) {
      check_derivatives(tensors_[t], *call.tensors[t]);
    }
  }
  for (size_t r = 0; r < op_.results.size(); ++r) {
    check_fit(outs_[r], call.outs[r]);
    check_derivatives(outs_[r], *call.outs[r]);
    check_may_be_written(name(), outs_[r].name, *call.outs[r]);
    check_overlaps(call, r);
  }
}

void Record::run(std::span<const Call> calls) {
  for (const Call& call : calls) {
    call.record->check(call);
  }
  calls.front().record->run_checked(calls);
  for (const Call& call : calls) {
    for (size_t r = 0; r < call.record->op_.results.size(); ++r) {
      bump_version(*call.outs[r]);
    }
  }
}

RecordPointer bake(const c10::OperatorHandle& op, torch::jit::Stack arguments) {
  op.redispatchBoxed(backend_of(arguments.back().toDevice()), &arguments);
  return arguments.back().toCustomClass<Record>();
}

}  // namespace mlxnorm
