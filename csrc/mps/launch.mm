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

// What a call binds, by BufferIndex; nil where it has nothing.
struct Bindings {
  id<MTLBuffer> buffers[kParamsBuffer] = {};
  NSUInteger offsets[kParamsBuffer] = {};

  void set(size_t index, const at::Tensor& tensor) {
    buffers[index] = buffer_of(tensor);
    offsets[index] = NSUInteger(byte_offset(tensor));
  }
};

Bindings bindings_of(const TensorPointers& tensors, const at::Tensor* const* outs,
                     size_t out_count) {
  Bindings result;
  for (size_t t = 0; t < kMaxTensors; ++t) {
    if (tensors[t] != nullptr) {
      result.set(kTensorBuffer + t, *tensors[t]);
    }
  }
  for (size_t r = 0; r < out_count; ++r) {
    result.set(kResultBuffer + r, *outs[r]);
  }
  return result;
}

NormParams params_of(const NormLayout& layout, const NormOptions& options) {
  NormParams params{};
  std::copy_n(layout.tensors, kMaxTensors, params.tensors);
  std::copy_n(layout.results, kMaxResults, params.results);
  params.expert_stride = layout.expert_stride;
  params.dim = uint32_t(layout.dim);
  params.rotated = uint32_t(layout.rotated);
  params.top_k = uint32_t(layout.top_k);
  params.inverse_dim = inverse_of(layout.dim);
  params.eps = options.eps;
  std::copy(std::begin(options.numbers), std::end(options.numbers), params.numbers);
  return params;
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

bool all_aligned(const OpTable& op, const NormLayout& layout, const TensorPointers& tensors,
                 const at::Tensor* const* outs) {
  const uint32_t by_words =
      tensors_of_words(op, layout.tensor_types, layout.scalars, /*with_experts=*/true);
  bool aligned = layout.expert_stride * size_of(layout.dtype) % kWordBytes == 0;
  for (size_t t = 0; t < op.tensors.size(); ++t) {
    if (has_bit(by_words, int(t))) {
      aligned = aligned && rows_aligned(layout.tensors[t], byte_offset(*tensors[t]),
                                        tensor_type(layout.tensor_types, int(t)), layout.dtype);
    }
  }
  for (size_t r = 0; r < op.results.size(); ++r) {
    aligned = aligned && rows_aligned(layout.results[r], byte_offset(*outs[r]),
                                      tensor_type_of(layout.dtype), layout.dtype);
  }
  return aligned;
}

Launch make_launch(const OpTable& op, const NormLayout& layout, const NormOptions& options,
                   bool aligned) {
  // Halves that are rotated are cut into words of their own.
  aligned = aligned && layout.rotated / 2 * size_of(layout.dtype) % kWordBytes == 0;
  const Plan plan = plan_rows(layout.dtype, layout.rows, layout.dim, aligned, chosen_access());
  return {pipeline(key_of(op, layout, options, plan)), plan.threads, dispatches(plan, layout.rows),
          params_of(layout, options)};
}

// PyTorch's graph capture records these calls alone, and every dispatch uses up what was set.
void run(const Launch& launch, const TensorPointers& tensors, const at::Tensor* const* outs,
         size_t out_count) {
  const Bindings bindings = bindings_of(tensors, outs, out_count);
  NormParams params = launch.params;
  encode([&](id<MTLComputeCommandEncoder> encoder) {
    for (const Dispatch& dispatch : launch.dispatches) {
      [encoder setComputePipelineState:launch.state];
      for (size_t i = 0; i < std::size(bindings.buffers); ++i) {
        if (bindings.buffers[i] != nil) {
          [encoder setBuffer:bindings.buffers[i] offset:bindings.offsets[i] atIndex:NSUInteger(i)];
        }
      }
      params.first_row = dispatch.first_row;
      params.rows = dispatch.rows;
      [encoder setBytes:&params length:sizeof(params) atIndex:kParamsBuffer];
      [encoder dispatchThreadgroups:MTLSizeMake(dispatch.threadgroups, 1, 1)
              threadsPerThreadgroup:MTLSizeMake(launch.threads, 1, 1)];
    }
  });
}

}  // namespace mlxnorm::mps
