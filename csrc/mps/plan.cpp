#include "plan.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>

namespace mlxnorm::mps {
namespace {

// Retune on a Mac: these were chosen on other GPUs whose SIMD groups are as wide
// (docs/performance.md).
constexpr int64_t kSimdKernelWords = 64;
constexpr int64_t kSimdKernelThreads = 256;

// Of columns: of a threadgroup, and of a SIMD group along a line, which make 128 bytes of it.
constexpr int64_t kColumnThreads = 256, kLeastLanesOfColumns = 8;

// Of a row: more threads than that wait long for one another.
constexpr int64_t kManyThreads = 512;

// What of a thread's registers the row and what is loaded before the first sum may fill; threads
// that need more are fewer. For everything: where an op reads one row and sums it once there is
// little to wait for, and beside many tensors nothing is left.
constexpr int64_t kRegistersAhead = 48, kRegistersAheadOfOneRow = 24, kTensorsAhead = 5;
constexpr int64_t kMostRegistersAhead = 64;

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
    case KernelKind::columns:
      return "columns";
    case KernelKind::long_columns:
      return "long_columns";
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

namespace {

int64_t activations_of(const OpTable& op) {
  return std::count_if(op.tensors.begin(), op.tensors.end(),
                       [](const TensorSpec& tensor) { return is_activation(tensor.role); });
}

bool has_experts(const OpTable& op) {
  return op.tensors[0].role == Role::experts;
}

bool reads_one_row(const OpTable& op) {
  return activations_of(op) == op.segment_count;
}

bool rotates(const OpTable& op) {
  return has_option(op.options, kInterleaved);
}

bool has_few_rows(const Rows& what) {
  return what.rows <= few_rows;
}

// Of a row that a SIMD group or a part of it has: the elements of a pair may be in two words.
int64_t words_of_a_lane(const Rows& what, int64_t words) {
  const bool halves = rotates(what.op) && choice_in(what.choices, kInterleaved) == 0;
  return halves || words > kSimdWidth ? 2 : 1;
}

bool computes(const Rows& what) {
  return choice_in(what.choices, kActivation) != kNoActivation ||
         choice_in(what.choices, kGateActivation) != kNoGateActivation;
}

// Rows whose words are cut out of two and joined again: there is little time for more. Three and
// more results are not joined across SIMD groups (norm_kernels.h).
bool joins_words(const Rows& what, const Plan& plan) {
  return !plan.vector && what.dtype != DType::float32 && what.op.results.size() <= 2;
}

// Of a row that a threadgroup has, before there are too many threads. Enough bytes have to be on
// their way: 8 elements of each of two rows, or 16 of one. More are worth it where they are not all
// there is to do, unless the row is alone with that.
int64_t least_words_of_a_thread(const Rows& what, const Plan& plan) {
  const bool float32 = what.dtype == DType::float32, few = has_few_rows(what);
  if (has_experts(what.op)) {
    return joins_words(what, plan) || (float32 && !few) ? 2 : 1;
  }
  if (rotates(what.op)) {
    return 4;
  }
  if (joins_words(what, plan)) {
    return 1;
  }
  if (computes(what) && !float32) {
    return few ? 1 : 2;
  }
  return float32 || reads_one_row(what.op) ? 2 : 1;
}

int64_t words_of_a_thread(const Rows& what, const Plan& plan, int64_t words) {
  int64_t result = least_words_of_a_thread(what, plan);
  const auto most_threads = [&] {
    const bool wide = has_few_rows(what) && (computes(what) || result > 1);
    return wide || has_experts(what.op) ? int64_t(kMaxThreads) : kManyThreads;
  };
  while (result < kMaxWordsPerThread && words > result * most_threads()) {
    result *= 2;
  }
  return result;
}

Prefetch prefetch_of(const Rows& what, const Plan& plan) {
  const bool few = has_few_rows(what) || plan.kernel == KernelKind::simd;
  // As many words of experts are on their way.
  if (plan.kernel == KernelKind::loop ||
      ((has_experts(what.op) || joins_words(what, plan)) && !few)) {
    return Prefetch::nothing;
  }
  const auto registers = [&](int64_t tensors) {
    const int64_t of_a_word = kWordBytes / int64_t(sizeof(uint32_t));
    const int64_t elements = kWordBytes / size_of(what.dtype);
    return (elements + tensors * of_a_word) * int64_t(plan.words_per_thread);
  };
  const int64_t tensors = std::popcount(what.tensors);
  const bool little_to_wait_for = reads_one_row(what.op) && what.op.sums == 1;
  const int64_t limit = few                  ? kMostRegistersAhead
                        : little_to_wait_for ? kRegistersAheadOfOneRow
                                             : kRegistersAhead;
  if (registers(tensors) <= limit && (few || tensors <= kTensorsAhead)) {
    return Prefetch::everything;
  }
  return registers(activations_of(what.op)) <= kMostRegistersAhead ? Prefetch::activations
                                                                   : Prefetch::nothing;
}

}  // namespace

namespace {

bool allowed(bool vector, Access access) {
  if (access == Access::vector && !vector) {
    throw std::invalid_argument(
        "TORCH_MLXNORM_ACCESS=vector needs rows of a multiple of 16 bytes that start on 16-byte "
        "boundaries in every tensor");
  }
  return vector && access != Access::scalar;
}

}  // namespace

Plan plan_rows(const Rows& what, Access access) {
  const int64_t per_word = kWordBytes / size_of(what.dtype);
  const int64_t words = ceil_div(what.dim, per_word);

  Plan plan{};
  plan.vector = what.aligned && what.dim % per_word == 0;
  plan.vector = allowed(plan.vector, access);

  plan.lanes_per_row = kSimdWidth;
  plan.rows_per_threadgroup = 1;
  if (words <= kSimdKernelWords) {
    plan.kernel = KernelKind::simd;
    plan.words_per_thread = uint32_t(words_of_a_lane(what, words));
    plan.lanes_per_row = uint32_t(next_power_of_two(ceil_div(words, plan.words_per_thread)));
    const int64_t threads = has_few_rows(what) ? int64_t(kSimdWidth) : kSimdKernelThreads;
    plan.threads =
        uint32_t(round_up(std::min(what.rows * plan.lanes_per_row, threads), kSimdWidth));
    plan.rows_per_threadgroup = plan.threads / plan.lanes_per_row;
  } else if (words <= kMaxWordsPerThread * kMaxThreads) {
    plan.kernel = KernelKind::row;
    plan.words_per_thread = uint32_t(words_of_a_thread(what, plan, words));
    plan.threads = uint32_t(round_up(ceil_div(words, plan.words_per_thread), kSimdWidth));
  } else {
    plan.kernel = KernelKind::loop;
    plan.threads = kMaxThreads;
  }
  plan.prefetch = prefetch_of(what, plan);
  return plan;
}

namespace {

// Of 8 channels each: how many a thread has in registers, and threads that share a column.
struct Octets {
  int64_t of_a_thread, threads;
};

// As few threads as possible are idle. Each has two or three if that makes enough of them.
Octets octets_of(int64_t octets, bool few) {
  Octets best{};
  int64_t least = 0;
  for (const int64_t each : {few ? 1 : 2, 3, few ? 2 : 1, int(kMaxWordsPerThread)}) {
    const int64_t threads = next_power_of_two(ceil_div(octets, each));
    if (threads <= kSimdWidth && (best.threads == 0 || threads * each < least)) {
      best = {each, threads};
      least = threads * each;
    }
  }
  return best;
}

}  // namespace

Plan plan_columns(const NormLayout& layout, bool aligned, Access access) {
  const int64_t per_word = kWordBytes / size_of(layout.dtype);
  const int64_t words = layout.rows * ceil_div(layout.line, per_word);

  Plan plan{};
  plan.vector = allowed(aligned && layout.line % per_word == 0, access);
  plan.rows_per_threadgroup = 1;
  plan.prefetch = Prefetch::nothing;
  const int64_t octets = ceil_div(layout.dim, 8);
  if (octets > int64_t(kMaxWordsPerThread) * kSimdWidth) {
    plan.kernel = KernelKind::long_columns;
    plan.threads = kMaxColumnThreads;
    plan.threads_per_column = kSimdWidth;
    plan.lanes_per_row = kMaxColumnThreads / kSimdWidth;
    return plan;
  }
  plan.kernel = KernelKind::columns;
  const bool few = words <= few_words_of_lines();
  const Octets each = octets_of(octets, few);
  plan.words_per_thread = uint32_t(each.of_a_thread);
  const int64_t threads = few ? int64_t(kSimdWidth) : kColumnThreads;
  plan.lanes_per_row =
      uint32_t(std::clamp<int64_t>(threads / each.threads, kLeastLanesOfColumns, kSimdWidth));
  plan.threads_per_column = uint32_t(each.threads);
  plan.threads = plan.lanes_per_row * plan.threads_per_column;
  return plan;
}

int64_t shares_of_lines(const NormLayout& layout, const Plan& plan) {
  const int64_t width = kWordBytes / size_of(layout.dtype) * int64_t(plan.lanes_per_row);
  return layout.rows * ceil_div(layout.line, width);
}

namespace {

template <typename Layout, typename F>
void for_each_row_layout(Layout& layout, const F& f) {
  for (int t = 0; t < kMaxTensors; ++t) {
    if (tensor_type(layout.tensor_types, t) != kAbsent) {
      f(layout.tensors[t]);
    }
  }
  for (int r = 0; r < kMaxResults; ++r) {
    if (tensor_type(layout.result_types, r) != kAbsent) {
      f(layout.results[r]);
    }
  }
}

// The numbers of rows after which a stride ends, of all layouts together, in ascending order.
std::vector<int64_t> ends_of_strides(const NormLayout& layout) {
  std::vector<int64_t> ends;
  for_each_row_layout(layout, [&ends](const RowLayout& rows) {
    for (const int64_t end : {int64_t(rows.size2), int64_t(rows.size1) * rows.size2}) {
      const auto place = std::lower_bound(ends.begin(), ends.end(), end);
      if (end != 1 && (place == ends.end() || *place != end)) {
        ends.insert(place, end);
      }
    }
  });
  return ends;
}

}  // namespace

Spacing spacing_of(const NormLayout& layout) {
  const std::vector<int64_t> ends = ends_of_strides(layout);
  if (ends.empty()) {
    return kEven;
  }
  const bool nest = ends.size() == 1 || (ends.size() == 2 && ends[1] % ends[0] == 0);
  const bool fit = ends.back() < int64_t(1) << 32 && layout.rows < int64_t(1) << 32;
  return nest && fit ? kAlike : kMixed;
}

NormLayout alike(NormLayout layout) {
  const std::vector<int64_t> ends = ends_of_strides(layout);
  const int64_t size2 = ends.front(), size1 = ends.back() / size2;
  for_each_row_layout(layout, [=](RowLayout& rows) {
    rows = {row_offset(rows, size1 * size2), row_offset(rows, size2), row_offset(rows, 1),
            uint32_t(size1), uint32_t(size2)};
  });
  return layout;
}

int64_t few_rows = 32;

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
