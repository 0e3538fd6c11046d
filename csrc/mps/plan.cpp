#include "plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace mlxnorm::mps {
namespace {

// Retune on a Mac: these were chosen on another GPU whose SIMD groups are as wide.
constexpr int64_t kSimdKernelWords = 64;
constexpr int64_t kSimdKernelThreads = 256;

static_assert(int(kTensorBuffer) + int(kMaxTensors) == kResultBuffer);
static_assert(int(kResultBuffer) + int(kMaxResults) == kParamsBuffer);
static_assert(int(kTensorTypeBits) * int(kMaxTensors) <= 32 && int(kMaxTensors) <= 32);

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

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    default:
      return "float32";
  }
}

const char* metal_type_name(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return "half";
    case DType::bfloat16:
      return "bfloat";
    default:
      return "float";
  }
}

std::string kernel_name(KernelKind kernel) {
  switch (kernel) {
    case KernelKind::simd:
      return "simd";
    case KernelKind::row:
      return "row";
    default:
      return "loop";
  }
}

}  // namespace

Access parse_access(const char* value) {
  if (value == nullptr || *value == '\0') {
    return Access::automatic;
  }
  if (std::strcmp(value, "scalar") == 0) {
    return Access::scalar;
  }
  if (std::strcmp(value, "vector") == 0) {
    return Access::vector;
  }
  throw std::invalid_argument(
      std::string("TORCH_MLXNORM_ACCESS must be \"scalar\", \"vector\" or unset, got \"") + value +
      "\"");
}

Plan plan_rows(DType dtype, int64_t rows, int64_t dim, bool aligned, Access access) {
  const int64_t per_word = kWordBytes / size_of(dtype);
  const int64_t words = ceil_div(dim, per_word);

  Plan plan{};
  plan.vector = aligned && dim % per_word == 0;
  if (access == Access::vector && !plan.vector) {
    throw std::invalid_argument(
        "TORCH_MLXNORM_ACCESS=vector needs rows of a multiple of 16 bytes that start on 16-byte "
        "boundaries in every tensor");
  }
  plan.vector = plan.vector && access != Access::scalar;

  plan.lanes_per_row = kSimdWidth;
  plan.rows_per_threadgroup = 1;
  if (words <= kSimdKernelWords) {
    plan.kernel = KernelKind::simd;
    plan.words_per_thread = 2;
    plan.lanes_per_row = uint32_t(next_power_of_two(ceil_div(words, 2)));
    const int64_t wanted =
        rows < kSimdKernelThreads ? rows * plan.lanes_per_row : kSimdKernelThreads;
    plan.threads = uint32_t(round_up(std::min(wanted, kSimdKernelThreads), kSimdWidth));
    plan.rows_per_threadgroup = plan.threads / plan.lanes_per_row;
  } else if (words <= kMaxWordsPerThread * kMaxThreads) {
    plan.kernel = KernelKind::row;
    plan.words_per_thread = words <= 2 * kMaxThreads ? 2 : kMaxWordsPerThread;
    plan.threads = uint32_t(round_up(ceil_div(words, plan.words_per_thread), kSimdWidth));
  } else {
    plan.kernel = KernelKind::loop;
    plan.threads = kMaxThreads;
  }
  plan.prefetch =
      plan.kernel == KernelKind::row && plan.words_per_thread == 2 && rows <= kPrefetchRows;
  return plan;
}

int64_t max_grid_threads = int64_t(1) << 31;

std::vector<Dispatch> dispatches(const Plan& plan, std::span<const int64_t> rows) {
  const int64_t segments = int64_t(rows.size());  // which share a grid
  const int64_t most = max_grid_threads / segments / plan.threads * plan.rows_per_threadgroup;
  std::vector<Dispatch> result;
  for (size_t s = 0; s < rows.size(); ++s) {
    for (int64_t i = 0, first = 0; first < rows[s]; ++i, first += most) {
      const int64_t count = std::min(most, rows[s] - first);
      const uint32_t threadgroups = uint32_t(ceil_div(count, plan.rows_per_threadgroup));
      if (i == int64_t(result.size())) {
        result.emplace_back();
      }
      result[i].shares[s] = {uint64_t(first), uint32_t(count), threadgroups};
      result[i].threadgroups += threadgroups;
    }
  }
  return result;
}

int64_t alignment_of(TensorType type, DType dtype) {
  return std::min<int64_t>(kWordBytes, kWordBytes / size_of(dtype) * element_size(type));
}

bool rows_aligned(const RowLayout& layout, int64_t byte_offset, TensorType type, DType dtype) {
  const int64_t alignment = alignment_of(type, dtype), size = element_size(type);
  const auto aligned = [=](int64_t elements) { return elements * size % alignment == 0; };
  return byte_offset % alignment == 0 && aligned(layout.stride0) && aligned(layout.stride1) &&
         aligned(layout.stride2);
}

uint32_t tensors_of_words(const OpTable& op, uint32_t tensor_types, uint32_t scalars,
                          bool with_experts) {
  uint32_t bits = 0;
  for (size_t t = 0; t < op.tensors.size(); ++t) {
    const Role role = op.tensors[t].role;
    const bool by_words = is_read_by_words(role) && (with_experts || role != Role::experts);
    if (by_words && tensor_type(tensor_types, int(t)) != kAbsent && !has_bit(scalars, int(t))) {
      bits |= 1u << t;
    }
  }
  return bits;
}

uint32_t bound_buffers(const OpTable& op, uint32_t tensor_types) {
  uint32_t buffers = 1u << kParamsBuffer;
  for (size_t t = 0; t < op.tensors.size(); ++t) {
    if (tensor_type(tensor_types, int(t)) != kAbsent) {
      buffers |= 1u << (kTensorBuffer + t);
    }
  }
  for (size_t r = 0; r < op.results.size(); ++r) {
    buffers |= 1u << (kResultBuffer + r);
  }
  return buffers;
}

std::string function_name(Op op, const Plan& plan, DType dtype) {
  std::string name = op_name(op) + ("_" + kernel_name(plan.kernel)) + "_";
  if (plan.words_per_thread > 0) {
    name += std::to_string(plan.words_per_thread) + "_";
  }
  name += dtype_name(dtype);
  name += plan.vector ? "_vector" : "_scalar";
  return name;
}

std::string instantiation(Op op, const Plan& plan, DType dtype) {
  std::string arguments = std::string("formula::") + op_name(op) + ", " + metal_type_name(dtype);
  if (plan.words_per_thread > 0) {
    arguments += ", " + std::to_string(plan.words_per_thread);
  }
  arguments += plan.vector ? ", true" : ", false";
  return "INSTANTIATE(\"" + function_name(op, plan, dtype) + "\", norm_" +
         kernel_name(plan.kernel) + "<" + arguments + ">)\n";
}

}  // namespace mlxnorm::mps
