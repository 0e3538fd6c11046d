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
// that of the results. The others are operands, each of any type.
enum class Role : uint8_t {
  input,            // [..., dim]
  experts,          // [..., top_k, dim]
  weight,           // [dim], or with leading dimensions that broadcast to those of the results
  scale,            // that, or one element
  routing_weights,  // [..., top_k]
  angles,           // of pairs, [..., up to dim / 2], or up to dim; leading dimensions broadcast
};

constexpr const char* kRoleNames[] = {"input", "experts",         "weight",
                                      "scale", "routing_weights", "angles"};
constexpr size_t kRoles = std::size(kRoleNames);

constexpr bool has_dtype_of_results(Role role) {
  return role == Role::input || role == Role::experts;
}

// Its other dimensions are those of the results, or broadcast to them.
constexpr int row_dimensions(Role role) {
  return role == Role::experts ? 2 : 1;
}

constexpr bool broadcasts(Role role) {
  return role == Role::weight || role == Role::scale || role == Role::angles;
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
};

struct TensorSpec {
  const char* name;
  Role role;
  Passing passing = Passing::required;
};

// A result has the dtype of the op's inputs and the shape of one of them (of experts: without
// top_k).
struct ResultSpec {
  const char* name;
  const char* like;
};

// In the order in which schemas have them.
inline constexpr Option kNormOptions[] = {kWeightOffset, kCastingMode};
inline constexpr Option kFusedOptions[] = {kWeightOffset, kCastingMode, kRoundIntermediates};

// Any op's table, for code that serves all of them.
struct OpTable {
  Op op;
  const char* name;  // qualified
  std::span<const TensorSpec> tensors;
  std::span<const ResultSpec> results;
  std::span<const Option> options;
  uint8_t likes[kMaxResults];  // numbers of the tensors that results are like
  uint8_t positional;          // tensors that come before eps
};

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
    if (like == std::size(Table::kTensors) || !has_dtype_of_results(Table::kTensors[like].role)) {
      return false;
    }
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
  OpTable table{op, qualified_name(op), Table::kTensors, Table::kResults, Table::kOptions, {}, 0};
  for (size_t r = 0; r < std::size(Table::kResults); ++r) {
    table.likes[r] = uint8_t(number_of<Table>(Table::kResults[r].like));
  }
  for (const TensorSpec& tensor : Table::kTensors) {
    table.positional += tensor.passing != Passing::keyword;
  }
  return table;
}

}  // namespace mlxnorm
