#include "chain.h"

#include <algorithm>

namespace mlxnorm {

void Chain::add(RecordPointer record, std::span<const Tensor> tensors,
                std::span<const Tensor> outs) {
  TORCH_CHECK_VALUE(records_.empty() || records_[0]->device() == record->device(),
                    "mlxnorm::prebake_chain: records must be on ", records_[0]->device(),
                    " (as the first), got ", record->device());
  Record::Call call{record.get()};
  for (size_t t = 0; t < tensors.size(); ++t) {
    call.tensors[t] = place(tensors[t], t, /*is_out=*/false);
  }
  for (size_t r = 0; r < outs.size(); ++r) {
    call.outs[r] = place(outs[r], r, /*is_out=*/true);
  }
  calls_.push_back(call);
  records_.push_back(std::move(record));
}

const at::Tensor* Chain::place(const Tensor& tensor, size_t position, bool is_out) {
  if (tensor.slot.has_value()) {
    uses_.push_back({*tensor.slot, calls_.size(), position, is_out});
    slots_ = std::max(slots_, *tensor.slot + 1);
    return nullptr;
  }
  return tensor.bound.defined() ? &bound_.emplace_back(tensor.bound) : nullptr;
}

void Chain::run(std::span<const at::Tensor* const> tensors) const {
  c10::SmallVector<Record::Call, 8> calls(calls_.begin(), calls_.end());
  for (const Use& use : uses_) {
    Record::Call& call = calls[use.call];
    (use.is_out ? call.outs : call.tensors)[use.position] = tensors[use.slot];
  }
  Record::run(calls);
}

}  // namespace mlxnorm
