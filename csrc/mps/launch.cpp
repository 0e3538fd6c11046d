#include "launch.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

namespace mlxnorm::mps {
namespace {

// Of a segment, by the numbers of the op.
NormParams params_of(const Segment& segment, const NormLayout& layout, const NormOptions& options) {
  NormParams params{};
  std::fill(std::begin(params.tensors), std::end(params.tensors), evenly_spaced(0));
  for (size_t i = 0; i < segment.count; ++i) {
    if (segment.tensors[i] != kNoTensor) {
      params.tensors[segment.tensors[i]] = layout.tensors[i];
      params.steps[segment.tensors[i]] = layout.steps[i];
    }
  }
  std::copy_n(layout.results, segment.results, params.results + segment.first_result);
  params.dim = uint32_t(layout.dim);
  params.heads = uint32_t(layout.heads);
  params.rotated = uint32_t(layout.rotated);
  params.top_k = uint32_t(layout.top_k);
  params.inverse_dim = inverse_of(layout.dim);
  params.root_dim = layout.root_dim;
  params.result_step = layout.result_step;
  params.line = uint64_t(layout.line);
  params.eps = options.eps;
  std::copy(std::begin(options.numbers), std::end(options.numbers), params.numbers);
  return params;
}

// Heads and the halves that are rotated are cut into words of their own.
bool has_whole_parts(const NormLayout& layout) {
  const auto whole = [&](int64_t elements) {
    return elements * size_of(layout.dtype) % kWordBytes == 0;
  };
  return whole(layout.rotated / 2) && (layout.heads == 1 || whole(layout.dim / layout.heads));
}

}  // namespace

Access chosen_access() {
  static const Access access = [] {
    const char* value = std::getenv("TORCH_MLXNORM_ACCESS");
    return parse_access(value != nullptr ? value : std::getenv("TORCH_MLXNORM_KERNEL"));
  }();
  return access;
}

bool all_aligned(const OpTable& op, const Segment& segment, const NormLayout& layout,
                 const TensorPointers& tensors, const at::Tensor* const* outs) {
  bool aligned = true;
  for (size_t i = 0; i < segment.count; ++i) {
    const Role role = op.tensors[segment.tensors[i]].role;
    const bool by_words = is_read_by_words(role) && (layout.line == 0 || role != Role::per_channel);
    if (tensors[i] != nullptr && by_words && !has_bit(layout.scalars, int(i))) {
      const TensorType type = tensor_type(layout.tensor_types, int(i));
      const RowLayout further = evenly_spaced(layout.steps[i]);
      aligned = aligned &&
                rows_aligned(layout.tensors[i], byte_offset(*tensors[i]), type, layout.dtype) &&
                rows_aligned(further, 0, type, layout.dtype);
    }
  }
  for (size_t r = 0; r < segment.results; ++r) {
    const TensorType type = tensor_type(layout.result_types, int(r));
    aligned = aligned &&
              rows_aligned(layout.results[r], byte_offset(*outs[r]), type, layout.dtype) &&
              rows_aligned(evenly_spaced(layout.result_step), 0, type, layout.dtype);
  }
  return aligned;
}

Launch make_launch(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
                   bool aligned) {
  Launch launch;
  int64_t rows[kMaxSegments];
  for (size_t s = 0; s < layouts.size(); ++s) {
    aligned = aligned && has_whole_parts(*layouts[s]);
    rows[s] = layouts[s]->rows;
  }
  const PipelineKey key = key_of(op, layouts, options, aligned, chosen_access());
  if (layouts[0]->line != 0) {
    rows[0] = shares_of_lines(*layouts[0], key.plan);
  }
  for (size_t s = 0; s < layouts.size(); ++s) {
    const bool changes = key.spacing == kAlike && spacing_of(*layouts[s]) == kAlike;
    const NormLayout& layout = *layouts[s];
    launch.params.push_back(params_of(op.segments[s], changes ? alike(layout) : layout, options));
  }
  launch.pipeline = pipeline(key);
  launch.threads = key.plan.threads;
  launch.dispatches = dispatches(key.plan, {rows, layouts.size()});
  return launch;
}

void Bindings::add(const Segment& segment, const TensorPointers& tensors,
                   const at::Tensor* const* outs) {
  for (size_t i = 0; i < segment.count; ++i) {
    if (tensors[i] != nullptr) {
      this->tensors[kTensorBuffer + segment.tensors[i]] = tensors[i];
    }
  }
  for (size_t r = 0; r < segment.results; ++r) {
    this->tensors[kResultBuffer + segment.first_result + r] = outs[r];
  }
}

void set_shares(const Dispatch& dispatch, c10::SmallVector<NormParams, 1>& params) {
  for (size_t s = 0; s < params.size(); ++s) {
    params[s].first_row = dispatch.shares[s].first_row;
    params[s].rows = dispatch.shares[s].rows;
    params[s].threadgroups = dispatch.shares[s].threadgroups;
  }
}

}  // namespace mlxnorm::mps
