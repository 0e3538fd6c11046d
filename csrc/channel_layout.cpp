#include "channel_layout.h"

#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

namespace mlxnorm {
namespace {

// Of the dimensions but for that of channels, the positions of rows.
struct Strides {
  c10::DimVector positions;
  int64_t channel;
};

// Of a tensor that is expanded to the shape of `like`; [C] has an element for each channel.
Strides strides_of(const at::Tensor& tensor, const at::Tensor& like) {
  const bool has_channels_alone = tensor.dim() == 1;
  Strides result{c10::DimVector(like.dim() - 1, 0), 0};
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    const int64_t dim = has_channels_alone ? 1 : i + like.dim() - tensor.dim();
    if (dim == 1) {
      result.channel = tensor.stride(i);
    } else if (tensor.size(i) != 1) {
      result.positions[dim == 0 ? 0 : dim - 1] = tensor.stride(i);
    }
  }
  return result;
}

// Some or all of the positions, from the one whose elements are farthest apart in out.
class Positions {
 public:
  explicit Positions(const at::Tensor& out) {
    const Strides strides = strides_of(out, out);
    for (size_t i = 0; i < strides.positions.size(); ++i) {
      sizes_.push_back(out.size(i == 0 ? 0 : int64_t(i) + 1));
      if (sizes_.back() != 1) {
        order_.push_back(i);
      }
    }
    std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
      return strides.positions[a] > strides.positions[b];
    });
  }

  // Takes away those that are neighbours in memory, which operands do not tell apart. How many; 1
  // where there are none.
  int64_t take_line(const Strides& x, const Strides& out, at::ArrayRef<Strides> operands) {
    int64_t line = 1;
    while (!order_.empty()) {
      const size_t i = order_.back();
      const bool shared =
          std::all_of(operands.begin(), operands.end(),
                      [i](const Strides& strides) { return strides.positions[i] == 0; });
      if (!shared || x.positions[i] != line || out.positions[i] != line) {
        break;
      }
      line *= sizes_[i];
      order_.pop_back();
    }
    return line;
  }

  int64_t count() const {
    return std::accumulate(order_.begin(), order_.end(), int64_t(1),
                           [this](int64_t count, size_t i) { return count * sizes_[i]; });
  }

  std::optional<RowLayout> folded(const Strides& of) const {
    c10::DimVector sizes, strides;
    for (const size_t i : order_) {
      sizes.push_back(sizes_[i]);
      strides.push_back(of.positions[i]);
    }
    return mlxnorm::folded(sizes, strides, Groups(1, 0));
  }

 private:
  c10::DimVector sizes_;
  c10::SmallVector<size_t, 5> order_;
};

}  // namespace

LaidOutChannels::LaidOutChannels(const NormCall& call, const at::Tensor& x, const at::Tensor& out)
    : out(&out) {
  const size_t count = call.op().tensors.size();
  tensors[0] = &x;
  c10::SmallVector<Strides, kMaxTensors> strides = {strides_of(x, out)};
  for (size_t t = 1; t < count; ++t) {
    const Argument& operand = call.tensor(t);
    tensors[t] = operand.tensor;
    strides.push_back(operand ? strides_of(*operand.tensor, out)
                              : Strides{c10::DimVector(out.dim() - 1, 0), 0});
  }
  const Strides of_out = strides_of(out, out);

  layout.dtype = dtype_of(x.scalar_type());
  layout.dim = out.size(1);
  layout.root_dim = std::sqrt(float(layout.dim));
  Positions rows(out), lines = rows;
  const int64_t line = lines.take_line(strides[0], of_out, at::makeArrayRef(strides).slice(1));
  const bool one = layout.dim == 1;
  const bool are_rows = one || (strides[0].channel == 1 && of_out.channel == 1);
  if (line > 1 && (one || !are_rows)) {
    layout.line = line;
    rows = lines;
  } else if (!are_rows) {
    return;
  }
  layout.rows = rows.count();

  bool fold = true;
  const auto place = [&](RowLayout& target, const Strides& from) {
    const std::optional<RowLayout> folded = rows.folded(from);
    target = folded.value_or(evenly_spaced(0));
    fold = fold && folded.has_value();
  };
  for (size_t t = 0; t < count; ++t) {
    layout.tensors[t] = evenly_spaced(0);
    if (tensors[t] == nullptr) {
      continue;
    }
    if (layout.line == 0 && t > 0 && strides[t].channel != 1) {  // read by words of a row
      copied_ = true;
      copies_[t] = tensors[t]->contiguous();
      tensors[t] = &copies_[t];
      strides[t] = strides_of(copies_[t], out);
    }
    layout.tensor_types |=
        pack_tensor_type(int(t), tensor_type_of(dtype_of(tensors[t]->scalar_type())));
    place(layout.tensors[t], strides[t]);
    layout.steps[t] = layout.line == 0 ? 0 : strides[t].channel;
  }
  place(layout.results[0], of_out);
  layout.result_step = layout.line == 0 ? 0 : of_out.channel;
  layout.result_types = pack_tensor_type(0, tensor_type_of(layout.dtype));
  fits = fold;
}

void run_channels(const NormCall& call, const at::Tensor& out,
                  c10::function_ref<void(const LaidOutChannels&)> kernel) {
  if (out.numel() == 0) {
    return;
  }
  const at::Tensor& x = *call.first().tensor;
  if (const LaidOutChannels laid_out(call, x, out); laid_out.fits) {
    return kernel(laid_out);
  }
  if (const LaidOutChannels laid_out(call, out, out); laid_out.fits) {
    out.copy_(x);
    return kernel(laid_out);
  }
  const at::Tensor contiguous = at::empty_like(x, at::MemoryFormat::Contiguous);
  contiguous.copy_(x);
  const LaidOutChannels laid_out(call, contiguous, contiguous);
  TORCH_INTERNAL_ASSERT(laid_out.fits);
  kernel(laid_out);
  out.copy_(contiguous);
}

}  // namespace mlxnorm
