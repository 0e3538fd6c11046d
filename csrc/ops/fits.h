// An op's table and its formula have the same tensors and results, under the same names, or the op
// does not compile.
#pragma once

#include <iterator>
#include <string_view>
#include <utility>

#include "../../shaders/formulas/formula.h"
#include "table.h"

namespace mlxnorm {

// As the compiler spells it: "kPostAttnWeight".
template <auto enumerator>
consteval std::string_view enumerator_name() {
  std::string_view text = __PRETTY_FUNCTION__;  // […enumerator = mlxnorm::formula::OP::kX…
  text = text.substr(text.find("enumerator = "));
  text = text.substr(0, text.find_first_of(";]"));
  return text.substr(text.rfind(':') + 1);
}

// Is "kPostAttnWeight" the enumerator of "post_attn_weight"?
consteval bool is_enumerator_of(std::string_view enumerator, std::string_view name) {
  size_t i = 0;
  const auto next_is = [&](char c) { return i < enumerator.size() && enumerator[i++] == c; };
  bool fits = next_is('k'), upper = true;
  for (const char c : name) {
    if (c != '_') {
      fits = fits && next_is(upper && c >= 'a' && c <= 'z' ? char(c - 'a' + 'A') : c);
    }
    upper = c == '_';
  }
  return fits && i == enumerator.size();
}

template <typename Enum, auto& specs, size_t... i>
consteval bool names_fit(std::index_sequence<i...>) {
  return (is_enumerator_of(enumerator_name<Enum(i)>(), specs[i].name) && ...);
}

template <typename Table, typename Formula>
consteval bool fits() {
  constexpr size_t kTensors = std::size(Table::kTensors), kResults = std::size(Table::kResults);
  static_assert(Formula::kTensors == kTensors, "tensors of the formula, and of the table");
  static_assert(Formula::kResults == kResults, "results of the formula, and of the table");
  static_assert(
      names_fit<typename Formula::Tensor, Table::kTensors>(std::make_index_sequence<kTensors>()),
      "names of the formula's tensors, in the order of the table");
  static_assert(
      names_fit<typename Formula::Result, Table::kResults>(std::make_index_sequence<kResults>()),
      "names of the formula's results, in the order of the table");
  using First = typename SegmentOf<Formula, 0>::type;
  static_assert(First::kSums == table_of<Table>(Op{}).sums,
                "sums of the formula, and of the table");
  static_assert(int(First::kFirst) == int(kComputed) || int(First::kFirst) < int(kTensors));
  static_assert(bool(Rotates<First>::value) == has<Table>(Role::angles), "angles of a rotation");
  static_assert(!Rotates<First>::value || (First::kSums == 1 && First::kResults == 1),
                "of the one result of one norm");
  static_assert(SegmentOf<Formula, 0>::kCount == segment_count<Table>(),
                "segments of the formula, and of the table");
  return true;
}

}  // namespace mlxnorm
