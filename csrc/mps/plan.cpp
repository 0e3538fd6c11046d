#include "plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "../../shaders/formulas/add_rms_norm.h"
#include "../../shaders/formulas/fused_moe_wsum_post_ff_norm2_endlayer.h"
#include "../../shaders/formulas/fused_post_attn_triple_norm.h"
#include "../../shaders/formulas/fused_post_ff_norm2_endlayer.h"
#include "../../shaders/formulas/rms_norm.h"
#include "../../shaders/formulas/rms_norm_add.h"
#include "../../shaders/formulas/rms_norm_add_rms_norm.h"
#include "../../shaders/formulas/rms_norm_mul.h"
#include "../../shaders/formulas/rms_norm_triple.h"

namespace mlxnorm::mps {
namespace {

// Retune on a Mac: these were chosen on another GPU whose SIMD groups are as wide.
constexpr int64_t kSimdKernelWords = 64;
constexpr int64_t kSimdKernelThreads = 256;

static_assert(int(kInputBuffer) + int(kMaxInputs) == kOperandBuffer);
static_assert(int(kOperandBuffer) + int(kScale) == kScaleBuffer);
static_assert(int(kOperandBuffer) + int(kRoutingWeights) == kRoutingWeightsBuffer);
static_assert(int(kOperandBuffer) + int(kOperands) == kOutputBuffer);
static_assert(int(kOutputBuffer) + int(kMaxOutputs) == kParamsBuffer);

struct Counts {
  int inputs, outputs;
};

Counts counts_of(Op op) {
  switch (op) {
#define MLXNORM_COUNTS(op) \
  case Op::op:             \
    return {formula::op::kInputs, formula::op::kOutputs};
    MLXNORM_FOR_EACH_OP(MLXNORM_COUNTS)
#undef MLXNORM_COUNTS
  }
  return {};
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

constexpr int64_t round_up(int64_t a, int64_t multiple) {
  return ceil_div(a, multiple) * multiple;
}

constexpr int64_t next_power_of_two(int64_t v) {
  int64_t power = 1;
  while (power < v) {
    power *= 2;
  }
  return power;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    default:
      return "float32";
  }
}

const char* metal_name_of(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return "half";
    case DType::bfloat16:
      return "bfloat";
    default:
      return "float";
  }
}

std::string name_of(RowKernel kernel) {
  switch (kernel) {
    case RowKernel::simd:
      return "simd";
    case RowKernel::row:
      return "row";
    default:
      return "loop";
  }
}

}  // namespace

KernelChoice parse_kernel_choice(const char* value) {
  if (value == nullptr || *value == '\0') {
    return KernelChoice::automatic;
  }
  if (std::strcmp(value, "scalar") == 0) {
    return KernelChoice::scalar;
  }
  if (std::strcmp(value, "vector") == 0) {
    return KernelChoice::vector;
  }
  throw std::invalid_argument(
      std::string("TORCH_MLXNORM_KERNEL must be \"scalar\", \"vector\" or unset, got \"") + value +
      "\"");
}

Plan plan_rows(DType dtype, int64_t rows, int64_t dim, bool aligned, KernelChoice choice) {
  const int64_t per_word = kWordBytes / size_of(dtype);
  const int64_t words = ceil_div(dim, per_word);

  Plan plan{};
  plan.vector = aligned && dim % per_word == 0;
  if (choice == KernelChoice::vector && !plan.vector) {
    throw std::invalid_argument(
        "TORCH_MLXNORM_KERNEL=vector needs rows of a multiple of 16 bytes that start on 16-byte "
        "boundaries in every tensor");
  }
  plan.vector = plan.vector && choice != KernelChoice::scalar;

  plan.lanes_per_row = kSimdWidth;
  plan.rows_per_threadgroup = 1;
  if (words <= kSimdKernelWords) {
    plan.kernel = RowKernel::simd;
    plan.words_per_thread = 2;
    plan.lanes_per_row = uint32_t(next_power_of_two(ceil_div(words, 2)));
    const int64_t wanted =
        rows < kSimdKernelThreads ? rows * plan.lanes_per_row : kSimdKernelThreads;
    plan.threads = uint32_t(round_up(std::min(wanted, kSimdKernelThreads), kSimdWidth));
    plan.rows_per_threadgroup = plan.threads / plan.lanes_per_row;
  } else if (words <= 4 * kMaxThreads) {
    plan.kernel = RowKernel::row;
    plan.words_per_thread = words <= 2 * kMaxThreads ? 2 : 4;
    plan.threads = uint32_t(round_up(ceil_div(words, plan.words_per_thread), kSimdWidth));
  } else {
    plan.kernel = RowKernel::loop;
    plan.threads = kMaxThreads;
  }
  plan.prefetch =
      plan.kernel == RowKernel::row && plan.words_per_thread == 2 && rows <= kPrefetchRows;
  return plan;
}

int64_t max_grid_threads = int64_t(1) << 31;

std::vector<Dispatch> dispatches(const Plan& plan, int64_t rows) {
  const int64_t most = max_grid_threads / plan.threads * plan.rows_per_threadgroup;
  std::vector<Dispatch> result;
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    result.push_back(
        {uint64_t(first), uint32_t(count), uint32_t(ceil_div(count, plan.rows_per_threadgroup))});
  }
  return result;
}

int64_t alignment_of(OperandType type, DType dtype) {
  return std::min<int64_t>(kWordBytes, kWordBytes / size_of(dtype) * element_size(type));
}

bool rows_aligned(const RowLayout& layout, int64_t byte_offset, OperandType type, DType dtype) {
  const int64_t alignment = alignment_of(type, dtype), size = element_size(type);
  const auto aligned = [=](int64_t elements) { return elements * size % alignment == 0; };
  return byte_offset % alignment == 0 && aligned(layout.stride0) && aligned(layout.stride1) &&
         aligned(layout.stride2);
}

uint32_t bound_buffers(Op op, uint32_t operand_types) {
  uint32_t buffers = 1u << kParamsBuffer;
  const auto bind = [&buffers](int index) { buffers |= 1u << index; };
  const Counts counts = counts_of(op);
  for (int i = 0; i < counts.inputs; ++i) {
    bind(kInputBuffer + i);
  }
  for (int i = 0; i < kOperands; ++i) {
    if (operand_type(operand_types, i) != kAbsent) {
      bind(kOperandBuffer + i);
    }
  }
  for (int i = 0; i < counts.outputs; ++i) {
    bind(kOutputBuffer + i);
  }
  return buffers;
}

std::string function_name(Op op, const Plan& plan, DType dtype) {
  std::string name = name_of(op) + ("_" + name_of(plan.kernel)) + "_";
  if (plan.words_per_thread > 0) {
    name += std::to_string(plan.words_per_thread) + "_";
  }
  name += name_of(dtype);
  name += plan.vector ? "_vector" : "_scalar";
  return name;
}

std::string instantiation(Op op, const Plan& plan, DType dtype) {
  std::string arguments = std::string("formula::") + name_of(op) + ", " + metal_name_of(dtype);
  if (plan.words_per_thread > 0) {
    arguments += ", " + std::to_string(plan.words_per_thread);
  }
  arguments += plan.vector ? ", true" : ", false";
  return "INSTANTIATE(\"" + function_name(op, plan, dtype) + "\", norm_" + name_of(plan.kernel) +
         "<" + arguments + ">)\n";
}

}  // namespace mlxnorm::mps
