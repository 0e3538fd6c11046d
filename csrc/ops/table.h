// What an op is, but for its formula: a table of its tensors, results and options, one in each
// csrc/ops/OP.h. Schema, checks, layouts, bindings and what Python knows of roles are made from it.
// Free of PyTorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string_view>

#include "options.h"

namespace mlxnorm {

// What a tensor may be; csrc/checks.cpp has the rule of each. Inputs and experts have one dtype,
// that of the results but for those like a residual. The others are operands, each of any type.
enum class Role : uint8_t {
  input,            // [..., dim]
  experts,          // [..., top_k, dim]
  weight,           // [dim], or with leading dimensions that broadcast to those of the results
  scale,            // that, or one element
  routing_weights,  // [..., top_k]
  angles,           // of pairs, [..., up to dim / 2], or up to dim; leading dimensions broadcast
  bias,             // as a weight; usual calls have none
  residual,         // as input, or float32 beside 16 bits
  channels,         // [N, C, ...], whose rows are along dimension 1
  per_channel,      // C elements, or what broadcasts to [N, C, 1, ...]
};

constexpr const char* kRoleNames[] = {"input",           "experts",    "weight", "scale",
                                      "routing_weights", "angles",     "bias",   "residual",
                                      "channels",        "per_channel"};
constexpr size_t kRoles = std::size(kRoleNames);

constexpr bool has_dtype_of_results(Role role) {
  return role == Role::input || role == Role::experts || role == Role::channels;
}

constexpr bool has_shape_of_results(Role role) {
  return role == Role::input || role == Role::residual || role == Role::channels;
}

// With a row, or several, for each of the results; not an operand.
constexpr bool is_activation(Role role) {
  return has_shape_of_results(role) || role == Role::experts;
}

// Its other dimensions are those of the results, or broadcast to them.
constexpr int row_dimensions(Role role) {
  return role == Role::experts ? 2 : 1;
}

constexpr bool broadcasts(Role role) {
  return role == Role::weight || role == Role::scale || role == Role::angles ||
         role == Role::bias || role == Role::per_channel;
}

constexpr bool may_be_scalar(Role role) {
  return role == Role::scale;
}

// Is it read by words (or blocks), as results are written? Routing weights are read one by one.
constexpr bool is_read_by_words(Role role) {
  return role != Role::routing_weights;
}

enum class Passing : uint8_t {
  required,   // Tensor
  optional,   // Tensor?
  defaulted,  // Tensor?=None
  keyword,    // Tensor?=None, after `*`
  extra,      // that, and the usual call has none
};

struct TensorSpec {
  const char* name;
  Role role;
  Passing passing = Passing::required;
};

// A result has the dtype and the shape of an input or a residual (of experts: without top_k).
struct ResultSpec {
  const char* name;
  const char* like;
};

// Some ops are several norms side by side, each of tensors and rows of its own, and each another op
// (segment_op). The others are one, of all their tensors.
struct Segment {
  uint8_t tensors[kMaxTensors];  // those of segment_op by the numbers of this one
  uint8_t count;
  uint8_t first_result, results;
};
constexpr uint8_t kNoTensor = kMaxTensors;

// In the order in which schemas have them.
inline constexpr Option kNormOptions[] = {kWeightOffset, kCastingMode};
inline constexpr Option kFusedOptions[] = {kWeightOffset, kCastingMode, kRoundIntermediates};
inline constexpr Option kRopeOptions[] = {kInterleaved,       kFullTables,   kAcrossHeads,
                                          kRopeRounding,      kWeightOffset, kCastingMode,
                                          kRoundIntermediates};

// Any op's table, for code that serves all of them.
struct OpTable {
  Op op;
  const char* name;  // qualified
  std::span<const TensorSpec> tensors;
  std::span<const ResultSpec> results;
  std::span<const Option> options;
  const char* eps = "1e-6";         // its default
  uint8_t likes[kMaxResults] = {};  // numbers of the tensors that results are like
  Segment segments[kMaxSegments] = {};
  uint8_t segment_count = 1;
  Op segment_op = op;
  uint8_t positional = 0;  // tensors that come before eps
  uint8_t sums = 1;        // over each row, one after the other
};

// Are rows along dimension 1?
constexpr bool has_channels(const OpTable& op) {
  return op.tensors[0].role == Role::channels;
}

// See tensor_type.
inline uint32_t result_types(const OpTable& op, uint32_t tensor_types) {
  uint32_t types = 0;
  for (size_t r = 0; r < op.results.size(); ++r) {
    types |= pack_tensor_type(int(r), tensor_type(tensor_types, op.likes[r]));
  }
  return types;
}

constexpr bool has_option(std::span<const Option> options, Option wanted) {
  for (const Option option : options) {
    if (option.kind == wanted.kind && option.which == wanted.which) {
      return true;
    }
  }
  return false;
}

// ---- what is wrong with a table does not compile ------------------------------------------------

// The number of the tensor with a name, or that of all tensors.
template <typename Table>
consteval size_t number_of(std::string_view name) {
  size_t t = 0;
  while (t < std::size(Table::kTensors) && Table::kTensors[t].name != name) {
    ++t;
  }
  return t;
}

template <typename Table>
consteval bool has(Role role) {
  for (const TensorSpec& tensor : Table::kTensors) {
    if (tensor.role == role) {
      return true;
    }
  }
  return false;
}

template <typename Table>
consteval bool defaults_and_keywords_come_last() {
  Passing last = Passing::required;
  for (const TensorSpec& tensor : Table::kTensors) {
    if (last >= Passing::defaulted && tensor.passing < last) {
      return false;
    }
    last = tensor.passing;
  }
  return true;
}

template <typename Table>
consteval bool results_are_like_inputs() {
  for (const ResultSpec& result : Table::kResults) {
    const size_t like = number_of<Table>(result.like);
    if (like == std::size(Table::kTensors) || !is_activation(Table::kTensors[like].role)) {
      return false;
    }
  }
  return true;
}

template <typename Table>
constexpr bool kHasSegments = requires { Table::kSegments; };

template <typename Table>
consteval size_t segment_count() {
  return kHasSegments<Table> ? std::size(Table::kResults) : 1;
}

// Segment s, which gives result s.
template <typename Table>
consteval Segment segment_of(size_t s) {
  Segment segment{};
  if constexpr (kHasSegments<Table>) {
    for (const char* name : Table::kSegments[s]) {
      const size_t t = name == nullptr ? kNoTensor : number_of<Table>(name);
      segment.tensors[segment.count++] = uint8_t(t);
    }
    segment.first_result = uint8_t(s);
    segment.results = 1;
  } else {
    segment.count = uint8_t(std::size(Table::kTensors));
    for (uint8_t t = 0; t < segment.count; ++t) {
      segment.tensors[t] = t;
    }
    segment.results = uint8_t(std::size(Table::kResults));
  }
  return segment;
}

template <typename Table>
consteval bool segments_have_results() {
  if constexpr (kHasSegments<Table>) {
    for (size_t s = 0; s < std::size(Table::kSegments); ++s) {
      if (s >= std::size(Table::kResults) ||
          Table::kSegments[s][0] != std::string_view(Table::kResults[s].like)) {
        return false;
      }
    }
    return std::size(Table::kSegments) == std::size(Table::kResults);
  }
  return true;
}

template <typename Table>
consteval OpTable table_of(Op op) {
  static_assert(std::size(Table::kTensors) <= kMaxTensors);
  static_assert(std::size(Table::kResults) <= kMaxResults);
  static_assert(has_dtype_of_results(Table::kTensors[0].role), "others are compared with it");
  static_assert(!has<Table>(Role::experts) || has<Table>(Role::input), "of the results' shape");
  static_assert(defaults_and_keywords_come_last<Table>());
  static_assert(!has<Table>(Role::experts) || !has_option(Table::kOptions, kGroupSize),
                "rows of experts are not next to one another in groups");
  static_assert(results_are_like_inputs<Table>());
  static_assert(segments_have_results<Table>(), "each segment has one, like its first tensor");
  OpTable table{op, qualified_name(op), Table::kTensors, Table::kResults, Table::kOptions};
  if constexpr (requires { Table::kSums; }) {
    table.sums = Table::kSums;
  }
  if constexpr (requires { Table::kEps; }) {
    table.eps = Table::kEps;
  }
  table.segment_count = uint8_t(segment_count<Table>());
  if constexpr (kHasSegments<Table>) {
    table.segment_op = Table::kSegmentOp;
  }
  for (size_t s = 0; s < table.segment_count; ++s) {
    table.segments[s] = segment_of<Table>(s);
  }
  for (size_t r = 0; r < std::size(Table::kResults); ++r) {
    table.likes[r] = uint8_t(number_of<Table>(Table::kResults[r].like));
  }
  for (const TensorSpec& tensor : Table::kTensors) {
    table.positional += tensor.passing < Passing::keyword;
  }
  return table;
}

}  // namespace mlxnorm
