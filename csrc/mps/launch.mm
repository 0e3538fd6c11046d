#include "launch.h"

#include <ATen/mps/MPSStream.h>
#include <dispatch/dispatch.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iterator>

#include "pipeline.h"

namespace mlxnorm::mps {
namespace {

int64_t byte_offset(const at::Tensor& tensor) {
  return tensor.storage_offset() * int64_t(tensor.element_size());
}

// The data pointer of an MPS storage is its MTLBuffer.
id<MTLBuffer> buffer_of(const at::Tensor& tensor) {
  return __builtin_bit_cast(id<MTLBuffer>, tensor.storage().data());
}

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

// Calls body(encoder) on the queue of the current MPS stream. The encoder stays PyTorch's: nothing
// is committed, waited for or ended here.
template <typename Body>
void encode(const Body& body) {
  at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
  const Body* encode_body = &body;
  // libdispatch does not pass exceptions on.
  __block std::exception_ptr error;
  dispatch_sync(stream->queue(), ^{
    @autoreleasepool {
      try {
        (*encode_body)(stream->commandEncoder());
      } catch (...) {
        error = std::current_exception();
      }
    }
  });
  if (error) {
    std::rethrow_exception(error);
  }
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
    if (tensors[i] != nullptr && is_read_by_words(op.tensors[segment.tensors[i]].role) &&
        !has_bit(layout.scalars, int(i))) {
      const TensorType type = tensor_type(layout.tensor_types, int(i));
      const RowLayout further = evenly_spaced(layout.steps[i]);
      aligned = aligned &&
                rows_aligned(layout.tensors[i], byte_offset(*tensors[i]), type, layout.dtype) &&
                rows_aligned(further, 0, type, layout.dtype);
    }
  }
  for (size_t r = 0; r < segment.results; ++r) {
    aligned = aligned && rows_aligned(layout.results[r], byte_offset(*outs[r]),
                                      tensor_type(layout.result_types, int(r)), layout.dtype);
  }
  return aligned;
}

Launch make_launch(const OpTable& op, SegmentLayouts layouts, const NormOptions& options,
                   bool aligned) {
  Launch launch;
  int64_t rows[kMaxSegments];
  for (size_t s = 0; s < layouts.size(); ++s) {
    aligned = aligned && has_whole_parts(*layouts[s]);
    launch.params.push_back(params_of(op.segments[s], *layouts[s], options));
    rows[s] = layouts[s]->rows;
  }
  const int64_t most_rows = *std::max_element(rows, rows + layouts.size());
  const NormLayout& first = *layouts[0];
  const Plan plan = plan_rows(first.dtype, most_rows, first.dim, aligned, chosen_access());
  launch.state = pipeline(key_of(op, layouts, options, plan));
  launch.threads = plan.threads;
  launch.dispatches = dispatches(plan, {rows, layouts.size()});
  return launch;
}

void Bindings::set(size_t index, const at::Tensor& tensor) {
  buffers[index] = buffer_of(tensor);
  offsets[index] = NSUInteger(byte_offset(tensor));
}

void Bindings::add(const Segment& segment, const TensorPointers& tensors,
                   const at::Tensor* const* outs) {
  for (size_t i = 0; i < segment.count; ++i) {
    if (tensors[i] != nullptr) {
      set(kTensorBuffer + segment.tensors[i], *tensors[i]);
    }
  }
  for (size_t r = 0; r < segment.results; ++r) {
    set(kResultBuffer + segment.first_result + r, *outs[r]);
  }
}

// PyTorch's graph capture records these calls alone, and every dispatch uses up what was set.
void run(const Launch& launch, const Bindings& bindings) {
  auto params = launch.params;
  encode([&](id<MTLComputeCommandEncoder> encoder) {
    for (const Dispatch& dispatch : launch.dispatches) {
      [encoder setComputePipelineState:launch.state];
      for (size_t i = 0; i < Bindings::kCount; ++i) {
        if (bindings.buffers[i] != nil) {
          [encoder setBuffer:bindings.buffers[i] offset:bindings.offsets[i] atIndex:NSUInteger(i)];
        }
      }
      for (size_t s = 0; s < params.size(); ++s) {
        params[s].first_row = dispatch.shares[s].first_row;
        params[s].rows = dispatch.shares[s].rows;
        params[s].threadgroups = dispatch.shares[s].threadgroups;
      }
      [encoder setBytes:params.data()
                 length:params.size() * sizeof(NormParams)
                atIndex:kParamsBuffer];
      [encoder dispatchThreadgroups:MTLSizeMake(dispatch.threadgroups, 1, 1)
              threadsPerThreadgroup:MTLSizeMake(launch.threads, 1, 1)];
    }
  });
}

}  // namespace mlxnorm::mps
