// MPS tensors: shaders/OP.metal on PyTorch's command encoder.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "../channel_layout.h"
#include "../register.h"
#include "launch.h"
#include "mps.h"

namespace mlxnorm::mps {
namespace {

// Has launches for aligned tensors, and others.
class MpsRecord : public Record {
 public:
  MpsRecord(const NormCall& call, const at::Tensor* const* outs, c10::Device device)
      : Record(call, outs, device) {
    if (go_together()) {
      groups_.push_back({&op(), 0, parts().size()});
    } else {
      for (size_t p = 0; p < parts().size(); ++p) {
        groups_.push_back({&table_of(op().segment_op), p, 1});
      }
    }
    for (Group& group : groups_) {
      group.aligned = make(group, /*aligned=*/true);
      if (chosen_access() != Access::vector) {
        group.unaligned = make(group, /*aligned=*/false);
      }
    }
  }

 private:
  // Parts that share a dispatch, as segments of an op.
  struct Group {
    const OpTable* op;
    size_t first, count;
    Launch aligned;
    std::optional<Launch> unaligned;
  };

  bool go_together() const {
    return parts().size() == op().segment_count &&
           std::all_of(parts().begin(), parts().end(), [this](const Part& part) {
             return part.layout.dim == parts()[0].layout.dim;
           });
  }

  Launch make(const Group& group, bool aligned) const {
    const NormLayout* layouts[kMaxSegments];
    for (size_t i = 0; i < group.count; ++i) {
      layouts[i] = &parts()[group.first + i].layout;
    }
    return make_launch(*group.op, {layouts, group.count}, options(), aligned);
  }

  void run_checked(std::span<const Call> calls) const override {
    c10::SmallVector<BoundLaunch, 8> launches;
    for (const Call& call : calls) {
      const auto* record = static_cast<const MpsRecord*>(call.record);
      for (const Group& group : record->groups_) {
        launches.push_back(record->bound(group, call));
      }
    }
    if (!launches.empty()) {
      mps::run(launches);
    }
  }

  BoundLaunch bound(const Group& group, const Call& call) const {
    Bindings bindings;
    bool aligned = true;
    for (size_t i = 0; i < group.count; ++i) {
      const auto& [own, layout] = parts()[group.first + i];
      const Segment& segment = group.op->segments[i];
      TensorPointers tensors{};
      select_tensors(*own, layout, call.tensors, tensors);
      const at::Tensor* const* outs = call.outs + own->first_result;
      bindings.add(segment, tensors, outs);
      aligned = aligned && all_aligned(*group.op, segment, layout, tensors, outs);
    }
    if (!aligned && !group.unaligned.has_value()) {
      make(group, /*aligned=*/false);  // refuses, as TORCH_MLXNORM_ACCESS=vector asks
    }
    return {aligned ? &group.aligned : &*group.unaligned, bindings};
  }

  c10::SmallVector<Group, 1> groups_;
};

struct Mps {
  static void check_limits(const NormCall& call, c10::Device device) {
    const OpTable& op = call.op();
    for (size_t s = 0; s < op.segment_count; ++s) {
      check_max_dim(op.name, call.first(op.segments[s]), call.across_heads(), kMaxDim, device);
    }
    if (call.first().role == Role::experts) {
      check_max_top_k(op.name, call.first(), std::numeric_limits<uint32_t>::max(), device);
    }
  }
  static at::Tensor empty(const at::Tensor& like) {
    return at::empty(like.sizes(), like.options());
  }
  static void run(const NormCall& call, const at::Tensor* const* outs) {
    const OpTable& op = call.op();
    if (has_channels(op)) {
      return run_channels(call, *outs[0], [&](const LaidOutChannels& laid_out) {
        launch(op, laid_out, call.options());
      });
    }
    std::optional<LaidOutCall> segments[kMaxSegments];
    bool together = true;
    for (size_t s = 0; s < op.segment_count; ++s) {
      if (call.like(op.segments[s].first_result).numel() == 0) {
        together = false;
        continue;
      }
      segments[s].emplace(call, outs, s);  // copies, where needed at all, are encoded before ours
      together = together && (s == 0 || go_together(*segments[0], *segments[s]));
    }
    if (together) {
      return launch(op, segments, call.options(), outs);
    }
    for (size_t s = 0; s < op.segment_count; ++s) {
      if (segments[s].has_value()) {
        launch(table_of(op.segment_op), &segments[s], call.options(),
               outs + op.segments[s].first_result);
      }
    }
  }

  static RecordPointer bake(const NormCall& call, const at::Tensor* const* outs,
                            c10::Device device) {
    return c10::make_intrusive<MpsRecord>(call, outs, device);
  }

 private:
  // In one dispatch: rows as long as one another, and no copies of tensors that both have.
  static bool go_together(const LaidOutCall& a, const LaidOutCall& b) {
    return a.layout.dim == b.layout.dim && !a.has_copies() && !b.has_copies();
  }

  static void launch(const OpTable& op, const LaidOutChannels& laid_out,
                     const NormOptions& options) {
    const Segment& segment = op.segments[0];
    const NormLayout* const layouts[] = {&laid_out.layout};
    Bindings bindings;
    bindings.add(segment, laid_out.tensors, &laid_out.out);
    const bool aligned = all_aligned(op, segment, laid_out.layout, laid_out.tensors, &laid_out.out);
    const BoundLaunch bound{&recent_launch(op, layouts, options, aligned), bindings};
    mps::run({&bound, 1});
  }

  static void launch(const OpTable& op, const std::optional<LaidOutCall>* segments,
                     const NormOptions& options, const at::Tensor* const* outs) {
    const NormLayout* layouts[kMaxSegments];
    Bindings bindings;
    bool aligned = true;
    for (size_t s = 0; s < op.segment_count; ++s) {
      const Segment& segment = op.segments[s];
      const at::Tensor* const* results = outs + segment.first_result;
      layouts[s] = &segments[s]->layout;
      bindings.add(segment, segments[s]->tensors, results);
      aligned = aligned && all_aligned(op, segment, *layouts[s], segments[s]->tensors, results);
    }
    const SegmentLayouts of_segments(layouts, op.segment_count);
    const BoundLaunch bound{&recent_launch(op, of_segments, options, aligned), bindings};
    mps::run({&bound, 1});
  }
};

// Of calls with tensors of these dtypes, inputs of `like`'s. Rows are evenly spaced, and rotated as
// far as they can be.
NormLayout layout_of(const OpTable& op, const Segment& segment, const at::Tensor& like, int64_t dim,
                     const c10::List<OptionalTensor>& tensors, const c10::List<bool>& one_element) {
  NormLayout layout{};
  layout.dtype = dtype_of(like.scalar_type());
  layout.dim = dim;
  std::fill(std::begin(layout.tensors), std::end(layout.tensors), evenly_spaced(dim));
  std::fill(std::begin(layout.results), std::end(layout.results), evenly_spaced(dim));
  for (size_t i = 0; i < segment.count; ++i) {
    const size_t t = segment.tensors[i];
    if (t == kNoTensor) {
      continue;
    }
    if (const OptionalTensor tensor = tensors.get(t)) {
      const DType dtype = dtype_of(tensor->scalar_type());
      layout.tensor_types |= pack_tensor_type(int(i), tensor_type_of(dtype));
      layout.scalars |= uint32_t(one_element.get(t)) << i;
      if (op.tensors[t].role == Role::angles) {
        layout.rotated = dim / 2 * 2;
      }
    }
  }
  return layout;
}

void warm_up(const at::Tensor& like, std::string_view op_name, int64_t dim,
             const c10::List<OptionalTensor>& tensors, const c10::List<bool>& one_element,
             bool unaligned, const c10::Dict<std::string, std::string>& choices) {
  TORCH_CHECK_VALUE(dim <= kMaxDim, "mlxnorm::warm_up: dims must be at most ", kMaxDim, " on ",
                    like.device(), ", got ", dim);
  const OpTable& op = table_of(op_name);
  const NormOptions options{.eps = 0.0f, .choices = parse_choices(op, choices)};
  NormLayout segments[kMaxSegments];
  const NormLayout* layouts[kMaxSegments];
  for (size_t s = 0; s < op.segment_count; ++s) {
    segments[s] = layout_of(op, op.segments[s], like, dim, tensors, one_element);
    layouts[s] = &segments[s];
  }
  for (const bool aligned : {true, false}) {
    if (aligned || (unaligned && chosen_access() != Access::vector)) {
      for (const int64_t rows : {few_rows, few_rows + 1}) {
        // Of several heads, tables of angles have a row for all heads of a token.
        for (const uint32_t heads : {1, 2}) {
          for (NormLayout& segment : segments) {
            segment.rows = rows;
            segment.tensors[0].size2 = heads;
          }
          if (heads == 1 || has_option(op.options, kInterleaved)) {
            make_launch(op, {layouts, op.segment_count}, options, aligned);
          }
        }
      }
      if (has_channels(op)) {  // that are not neighbours in memory: few words of a line, and many
        for (const int64_t words : {int64_t(1), few_words_of_lines() + 1}) {
          NormLayout columns = segments[0];
          columns.rows = 1;
          columns.tensors[0].size2 = 1;
          columns.line = words * kWordBytes / size_of(columns.dtype);
          const NormLayout* const layout[] = {&columns};
          make_launch(op, layout, options, aligned);
        }
      }
    }
  }
}

std::tuple<std::vector<std::string>, std::vector<std::string>, std::vector<double>> list_compiled(
    const at::Tensor& /*like*/) {
  std::vector<std::string> names, origins;
  std::vector<double> seconds;
  for (const CompiledKernel& kernel : compiled_kernels()) {
    names.push_back(kernel.name);
    origins.push_back(kernel.origin);
    seconds.push_back(kernel.seconds);
  }
  return {names, origins, seconds};
}

}  // namespace

void register_on(torch::Library& m) {
  register_kernels<Mps>(m);
  register_records<Mps>(m);
  m.impl("_warm_up", warm_up);
  m.impl("_compiled_kernels", list_compiled);
}

}  // namespace mlxnorm::mps
