// MPS tensors: shaders/OP.metal on PyTorch's command encoder.
#include <ATen/ops/empty.h>

#include <limits>
#include <optional>
#include <vector>

#include "../kernels.h"
#include "../record.h"
#include "../rows.h"
#include "metal.h"

namespace mlxnorm::mps {
namespace {

bool is_aligned(const Rows& rows, OperandType type, DType dtype) {
  return rows_aligned(rows.layout, byte_offset(*rows.tensor), type, dtype);
}

bool all_aligned(const NormCall& call, const RowsOfCall& rows, const at::Tensor* const* outs,
                 int out_count) {
  bool aligned = rows.expert_stride * size_of(rows.dtype) % kWordBytes == 0;
  for (int i = 0; i < kMaxInputs && call.input(i); ++i) {
    aligned = aligned && is_aligned(rows.inputs[i], operand_type_of(rows.dtype), rows.dtype);
  }
  for (int i = 0; i < kRoutingWeights; ++i) {
    if (call.operand(i) && !(i == kScale && rows.scale_is_scalar)) {
      const OperandType type = operand_type(rows.operand_types, i);
      aligned = aligned && is_aligned(rows.operands[i], type, rows.dtype);
    }
  }
  for (int i = 0; i < out_count; ++i) {
    aligned = aligned && byte_offset(*outs[i]) % kWordBytes == 0;
  }
  return aligned;
}

// What a call binds, by BufferIndex; nil where it has nothing.
struct Bindings {
  id<MTLBuffer> buffers[kParamsBuffer] = {};
  NSUInteger offsets[kParamsBuffer] = {};

  void set(int index, const at::Tensor& tensor) {
    buffers[index] = buffer_of(tensor);
    offsets[index] = NSUInteger(byte_offset(tensor));
  }
};

Bindings bindings_of(const NormCall& call, const RowsOfCall& rows, const at::Tensor* const* outs,
                     int out_count) {
  Bindings result;
  for (int i = 0; i < kMaxInputs && call.input(i); ++i) {
    result.set(kInputBuffer + i, *rows.inputs[i].tensor);
  }
  for (int i = 0; i < kOperands; ++i) {
    if (call.operand(i)) {
      result.set(kOperandBuffer + i, *rows.operands[i].tensor);
    }
  }
  for (int i = 0; i < out_count; ++i) {
    result.set(kOutputBuffer + i, *outs[i]);
  }
  return result;
}

NormParams params_of(const RowsOfCall& rows, const NormOptions& options) {
  NormParams params{};
  for (int i = 0; i < kMaxInputs; ++i) {
    params.inputs[i] = rows.inputs[i].layout;
  }
  params.scale = rows.operands[kScale].layout;
  params.routing_weights = rows.operands[kRoutingWeights].layout;
  params.expert_stride = rows.expert_stride;
  params.dim = uint32_t(rows.dim);
  params.top_k = uint32_t(rows.top_k);
  params.inverse_dim = inverse_of(rows.dim);
  params.eps = options.eps;
  params.weight_offset = options.weight_offset;
  return params;
}

// A kernel ready to be dispatched.
struct Launch {
  id<MTLComputePipelineState> state;
  uint32_t threads;
  std::vector<Dispatch> dispatches;
};

// `key` but for its plan.
Launch prepare(PipelineKey key, int64_t rows, int64_t dim, bool aligned) {
  key.plan = plan_rows(key.dtype, rows, dim, aligned, kernel_choice());
  return {pipeline(key), key.plan.threads, dispatches(key.plan, rows)};
}

PipelineKey key_of(Op op, DType dtype, uint32_t operand_types, const NormOptions& options,
                   Activation activation = kNoActivation, bool scale_is_scalar = false) {
  const bool rounds = dtype != DType::float32;
  const bool rounds_scale =
      activation != kNoActivation && operand_type(operand_types, kScale) != kFloat32;
  PipelineKey key{};
  key.op = op;
  key.dtype = dtype;
  key.operand_types = operand_types;
  key.scale_is_scalar = scale_is_scalar;
  key.activation = activation;
  key.round_before_weight = rounds && options.casting_mode == CastingMode::llama;
  key.round_intermediates = (rounds || rounds_scale) && options.round_intermediates;
  return key;
}

// PyTorch's graph capture records these calls alone, and every dispatch uses up what was set.
void run_launch(const Launch& launch, const Bindings& bindings, NormParams params) {
  encode([&](id<MTLComputeCommandEncoder> encoder) {
    for (const Dispatch& dispatch : launch.dispatches) {
      [encoder setComputePipelineState:launch.state];
      for (int i = 0; i < kParamsBuffer; ++i) {
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

void run_call(const NormCall& call, const at::Tensor* const* outs, int out_count) {
  const RowsOfCall rows(call);  // copies, where needed at all, are encoded before ours
  const PipelineKey key = key_of(call.op(), rows.dtype, rows.operand_types, call.options(),
                                 call.activation(), rows.scale_is_scalar);
  const bool aligned = all_aligned(call, rows, outs, out_count);
  run_launch(prepare(key, rows.count, rows.dim, aligned), bindings_of(call, rows, outs, out_count),
             params_of(rows, call.options()));
}

struct Mps {
  static void check(const NormCall& call) {
    check_max_dim(call.op(), call.first_input(), kMaxDim);
    if (call.sums_experts()) {
      check_max_top_k(call.op(), call.first_input(), std::numeric_limits<uint32_t>::max());
    }
  }
  static at::Tensor empty(const at::Tensor& like) {
    return at::empty(like.sizes(), like.options());
  }
  template <size_t n>
  static void run(const NormCall& call, const at::Tensor* const (&outs)[n]) {
    if (call.like().numel() > 0) {
      run_call(call, outs, n);
    }
  }
};

// Has a kernel for aligned tensors and one for others.
class MpsRecord : public RmsNormRecord {
 public:
  explicit MpsRecord(const Spec& spec) : RmsNormRecord(spec) {
    TORCH_CHECK_VALUE(spec.dim <= kMaxDim, "mlxnorm::RmsNormRecord: dim must be at most ", kMaxDim,
                      " on ", spec.device, ", got ", spec.dim);
    aligned_ = prepare(/*aligned=*/true);
    if (kernel_choice() != KernelChoice::vector) {
      unaligned_ = prepare(/*aligned=*/false);
    }
    params_.inputs[0] = {spec.dim, 0, 0, 1, 1};
    params_.dim = uint32_t(spec.dim);
    params_.inverse_dim = inverse_of(spec.dim);
    params_.eps = spec.options.eps;
    params_.weight_offset = spec.options.weight_offset;
  }

 private:
  Launch prepare(bool aligned) const {
    const PipelineKey key =
        key_of(Op::rms_norm, dtype_of(spec().dtype), spec().operand_types(), spec().options);
    return mps::prepare(key, spec().rows, spec().dim, aligned);
  }

  void run(const at::Tensor& x, const OptionalTensor& weight,
           const at::Tensor& out) const override {
    Bindings bindings;
    bindings.set(kInputBuffer, x);
    bool aligned = byte_offset(x) % kWordBytes == 0 && byte_offset(out) % kWordBytes == 0;
    if (weight.has_value()) {
      bindings.set(kOperandBuffer, *weight);
      const OperandType type = operand_type(spec().operand_types(), 0);
      const int64_t alignment = alignment_of(type, dtype_of(spec().dtype));
      aligned = aligned && byte_offset(*weight) % alignment == 0;
    }
    bindings.set(kOutputBuffer, out);
    if (!aligned && !unaligned_.has_value()) {
      prepare(/*aligned=*/false);  // refuses, as TORCH_MLXNORM_KERNEL=vector asks
    }
    run_launch(aligned ? aligned_ : *unaligned_, bindings, params_);
  }

  Launch aligned_;
  std::optional<Launch> unaligned_;
  NormParams params_{};
};

// Of calls with activations of `like`'s dtype. `operands`, by Operand, are absent or have the
// dtypes of those calls' operands.
void warm_up(const at::Tensor& like, std::string_view op_name, int64_t dim,
             const c10::List<OptionalTensor>& operands, bool scale_is_scalar, bool unaligned,
             std::string_view activation, std::string_view casting_mode, bool round_intermediates) {
  TORCH_CHECK_VALUE(dim <= kMaxDim, "mlxnorm::warm_up: dims must be at most ", kMaxDim, " on ",
                    like.device(), ", got ", dim);
  const Op op = op_of(op_name);
  uint32_t operand_types = 0;
  for (int i = 0; i < kOperands; ++i) {
    if (const OptionalTensor operand = operands.get(i)) {
      operand_types |= pack_operand_type(i, operand_type_of(dtype_of(operand->scalar_type())));
    }
  }
  const PipelineKey key = key_of(
      op, dtype_of(like.scalar_type()), operand_types,
      make_options(op, /*eps=*/0.0, /*weight_offset=*/0.0, casting_mode, round_intermediates),
      parse_activation(op, activation), scale_is_scalar);
  for (const bool aligned : {true, false}) {
    if (aligned || (unaligned && kernel_choice() != KernelChoice::vector)) {
      for (const int64_t rows : {kPrefetchRows, kPrefetchRows + 1}) {
        prepare(key, rows, dim, aligned);
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

TORCH_LIBRARY_IMPL(mlxnorm, MPS, m) {
  register_kernels<Mps>(m);
  m.impl("_bake_rms_norm", bake_rms_norm<MpsRecord>);
  m.impl("_warm_up", warm_up);
  m.impl("_compiled_kernels", list_compiled);
}

}  // namespace mlxnorm::mps
