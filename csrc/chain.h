// Calls of records that follow each other, as one: some of their tensors are bound, the others are
// brought by every call of the chain.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include "record.h"

namespace mlxnorm {

class Chain {
 public:
  // A tensor of a call: none, one that is bound, or the number of one that calls bring.
  struct Tensor {
    at::Tensor bound;  // undefined: not bound
    std::optional<size_t> slot;
  };

  // Tensors of the op and outs, as many as it has.
  void add(RecordPointer record, std::span<const Tensor> tensors, std::span<const Tensor> outs);

  // As many as there are slots.
  void run(std::span<const at::Tensor* const> tensors) const;

  size_t slots() const { return slots_; }
  bool empty() const { return calls_.empty(); }

 private:
  struct Use {
    size_t slot, call, position;
    bool is_out;
  };

  const at::Tensor* place(const Tensor& tensor, size_t position, bool is_out);

  std::vector<RecordPointer> records_;
  std::vector<Record::Call> calls_;
  std::deque<at::Tensor> bound_;  // whose addresses calls have
  std::vector<Use> uses_;
  size_t slots_ = 0;
};

}  // namespace mlxnorm
