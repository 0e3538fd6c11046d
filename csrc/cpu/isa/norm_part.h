// A formula applied to part of a row, where there are fewer rows than threads (csrc/cpu/split.h).
#pragma once

#include "heads.h"
#include "statistic.h"
#include "summands.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

// Rows that may be long: neither heads nor channels are. Experts would share the scratch that their
// weights are unpacked to.
template <typename Table, typename Formula>
constexpr bool kSharesRows = !Rotates<Formula>::value && !kHasForm<Table> && !kRoutes<Table>;

template <typename Table, typename Formula, typename T, Calls kCalls>
MLXNORM_FLAT void norm_part(const NormArguments& call, const RowPart& part) {
  using Sum = SumOfSquares<T>;
  const int64_t dim = call.layout.dim;
  const Row<Table, T> here = Rows<Table, T, kCalls>(call)[part.row];
  const float statistic = Statistic<Table, T>(call)(part.sum);
  const Summands<Formula> summands{part.scratch};
  const auto piece_at = [&](int64_t i, auto... n) {
    return Piece<Table, T, kCalls, sizeof...(n) == 0>{call, here, statistic, i, n...};
  };
  if (part.pass == 0) {
    return sums_of_runs<Sum>(dim, part.begin, part.end, part.sums, [&](int64_t i, auto... n) {
      return summands.first(piece_at(i, n...));
    });
  }
  if constexpr (Formula::kSums == 2) {
    if (part.pass == 1) {
      return sums_of_runs<Sum>(dim, part.begin, part.end, part.sums, [&](int64_t i, auto... n) {
        return summands.second(piece_at(i, n...));
      });
    }
  }
  const auto finish = [&]<bool kStreams>(std::bool_constant<kStreams>) {
    const int64_t first = part.begin * Sum::kRun;
    for_each_block(std::min(part.end * Sum::kRun, dim) - first, [&](int64_t i, auto... n) {
      const auto piece = piece_at(first + i, n...);
      const auto results = Formula::finish(piece, summands.last_again(piece));
      const auto write = [&](auto number, auto* values) {
        Store<T, kStreams>()(values + piece.i, results.values[number()], n...);
      };
      for_each_result<Table, T, kCalls>(call, here, write, kResultNumbers<Table>);
    });
  };
  if (call.streaming) {
    finish(std::true_type());
    stream_fence();
  } else {
    finish(std::false_type());
  }
}

// One for all calls: what it asks for each block is nothing beside memory.
template <typename Table, typename Formula, typename T>
constexpr PartKernel part_kernel() {
  if constexpr (kSharesRows<Table, Formula>) {
    constexpr Calls kCalls{.extras = (kExtras<Table> | kResiduals<Table>) != 0};
    return {norm_part<Table, Formula, T, kCalls>, SumOfSquares<T>::kRun, Formula::kSums};
  }
  return {};
}

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
