#include "launch.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>

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
  std::vector<NormParams> params;
  for (size_t s = 0; s < layouts.size(); ++s) {
    const bool changes = key.spacing == kAlike && spacing_of(*layouts[s]) == kAlike;
    const NormLayout& layout = *layouts[s];
    params.push_back(params_of(op.segments[s], changes ? alike(layout) : layout, options));
  }
  launch.pipeline = pipeline(key);
  launch.threads = key.plan.threads;
  launch.segments = layouts.size();
  for (const Dispatch& dispatch : dispatches(key.plan, {rows, layouts.size()})) {
    launch.threadgroups.push_back(dispatch.threadgroups);
    for (size_t s = 0; s < layouts.size(); ++s) {
      const Dispatch::Share& share = dispatch.shares[s];
      params[s].first_row = share.first_row;
      params[s].rows = share.rows;
      params[s].threadgroups = share.threadgroups;
      launch.params.push_back(params[s]);
    }
  }
  return launch;
}

namespace {

// What a launch was made for.
struct LaunchKey {
  LaunchKey(SegmentLayouts given, const NormOptions& options, bool aligned)
      : options(options),
        aligned(aligned),
        segments(given.size()),
        few_rows(mps::few_rows),
        max_grid_threads(mps::max_grid_threads) {
    for (size_t s = 0; s < segments; ++s) {
      layouts[s] = *given[s];
    }
  }

  bool is_of(SegmentLayouts given, const NormOptions& wanted, bool aligned) const {
    bool same = given.size() == segments && this->aligned == aligned &&
                std::memcmp(&options, &wanted, sizeof(options)) == 0 && few_rows == mps::few_rows &&
                max_grid_threads == mps::max_grid_threads;
    for (size_t s = 0; same && s < segments; ++s) {
      same = std::memcmp(&layouts[s], given[s], kLayoutBytes) == 0;
    }
    return same;
  }

  // The root of dim, which comes last, follows from dim. Before it there is no padding.
  static constexpr size_t kLayoutBytes = offsetof(NormLayout, root_dim);
  static_assert(kLayoutBytes == sizeof(DType) + 3 * sizeof(uint32_t) +
                                    (7 + kMaxTensors) * sizeof(int64_t) +
                                    (kMaxTensors + kMaxResults) * sizeof(RowLayout));
  static_assert(std::has_unique_object_representations_v<RowLayout>);

  NormLayout layouts[kMaxSegments];
  NormOptions options;
  bool aligned;
  size_t segments;
  int64_t few_rows, max_grid_threads;  // tests change them
};

}  // namespace

const Launch& recent_launch(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
                            bool aligned) {
  struct Recent {
    std::vector<std::pair<LaunchKey, Launch>> launches;
    size_t oldest = 0;
  };
  constexpr size_t kKept = 8;  // shapes of an op in a model, of prefill and of decoding
  thread_local Recent recent_of_ops[std::size(kOps)];
  auto& [launches, oldest] = recent_of_ops[size_t(op.op)];
  for (const auto& [key, launch] : launches) {
    if (key.is_of(layouts, options, aligned)) {
      return launch;
    }
  }
  std::pair<LaunchKey, Launch> made{LaunchKey(layouts, options, aligned),
                                    make_launch(op, layouts, options, aligned)};
  if (launches.size() < kKept) {
    return launches.emplace_back(std::move(made)).second;
  }
  std::pair<LaunchKey, Launch>& replaced = launches[oldest];
  oldest = (oldest + 1) % kKept;
  replaced = std::move(made);
  return replaced.second;
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

}  // namespace mlxnorm::mps
