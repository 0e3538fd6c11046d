// Where the rows of a call lie, and their blocks.
#pragma once

#include "piece.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

template <typename Table>
constexpr auto kTensorNumbers = std::make_index_sequence<std::size(Table::kTensors)>();
template <typename Table>
constexpr auto kResultNumbers = std::make_index_sequence<std::size(Table::kResults)>();

template <typename Table, typename T, Calls kCalls, size_t t>
inline const void* tensor_of_row(const NormArguments& call, int64_t row) {
  constexpr Role role = Table::kTensors[t].role;
  if constexpr (!kCalls.mixed && role == Role::weight) {
    return call.tensors[t];
  }
  if constexpr (!kCalls.extras && Table::kTensors[t].passing == Passing::extra) {
    return nullptr;
  }
  const int64_t size = has_dtype_of_results(role) || (kCalls.even() && role == Role::residual)
                           ? sizeof(T)
                           : element_size(tensor_type(call.layout.tensor_types, t));
  return static_cast<const char*>(call.tensors[t]) +
         row_offset(call.layout.tensors[t], uint64_t(row)) * size;
}

// The type of a result, known when this is compiled but for those that are like a residual.
template <typename Table, typename T, Calls kCalls, size_t r>
inline TensorType result_type(const NormArguments& call) {
  constexpr size_t like = number_of<Table>(Table::kResults[r].like);
  if constexpr (!kCalls.even() && Table::kTensors[like].role == Role::residual) {
    return tensor_type(call.layout.tensor_types, like);
  }
  return kTensorType<T>;
}

template <typename Table, typename T, Calls kCalls, size_t r>
inline void* result_of_row(const NormArguments& call, int64_t row) {
  return static_cast<char*>(call.results[r]) +
         row_offset(call.layout.results[r], uint64_t(row)) *
             element_size(result_type<Table, T, kCalls, r>(call));
}

template <typename Table, typename T, Calls kCalls, size_t... t, size_t... r>
inline Row<Table, T> row_of(const NormArguments& call, int64_t row, std::index_sequence<t...>,
                            std::index_sequence<r...>) {
  return {{tensor_of_row<Table, T, kCalls, t>(call, row)...},
          {result_of_row<Table, T, kCalls, r>(call, row)...}};
}

template <typename Table, typename T, Calls kCalls>
inline Row<Table, T> row_of(const NormArguments& call, int64_t row) {
  return row_of<Table, T, kCalls>(call, row, kTensorNumbers<Table>, kResultNumbers<Table>);
}

// f(number, row) of each result, with its row as what it is made of: T or, of one that is like a
// residual, float32.
template <typename Table, typename T, Calls kCalls, typename F, size_t... r>
[[gnu::always_inline]] inline void for_each_result(const NormArguments& call,
                                                   const Row<Table, T>& row, const F& f,
                                                   std::index_sequence<r...>) {
  const auto call_with_type = [&](auto number) {
    constexpr size_t i = number();
    if (result_type<Table, T, kCalls, i>(call) == kTensorType<T>) {
      f(number, static_cast<T*>(row.results[i]));
    } else {
      f(number, static_cast<float*>(row.results[i]));
    }
  };
  (call_with_type(std::integral_constant<size_t, r>()), ...);
}

// What of a row is large: inputs, residuals and experts.
template <typename Table, typename T, Calls kCalls, size_t... t>
inline void prefetch_inputs(const NormArguments& call, const Row<Table, T>& row, int64_t i,
                            std::index_sequence<t...>) {
  const auto prefetch = [&](auto number) {
    constexpr Role role = Table::kTensors[number()].role;
    if constexpr (has_dtype_of_results(role) || (kCalls.even() && role == Role::residual)) {
      prefetch_block(static_cast<const T*>(row.tensors[number()]) + i);
    } else if constexpr (role == Role::residual) {
      with_type<T>(tensor_type(call.layout.tensor_types, number()), row.tensors[number()],
                   [i](auto* values) { prefetch_block(values + i); });
    }
  };
  const auto prefetch_further_experts = [&](auto number) {
    if constexpr (Table::kTensors[number()].role == Role::experts) {
      const T* const experts = static_cast<const T*>(row.tensors[number()]) + i;
      for (int64_t k = 1; k < call.layout.top_k; ++k) {
        prefetch_block(experts + k * call.layout.steps[number()]);
      }
    }
  };
  (prefetch(std::integral_constant<size_t, t>()), ...);
  (prefetch_further_experts(std::integral_constant<size_t, t>()), ...);
}

// For the parts of a rotated row. Where there are none the loop says it itself: called, it kept GCC
// from splitting that by `streaming`, and rows written past the caches took twice the time.
template <typename Table, typename T>
inline void prefetch_row(const NormArguments& call, const Row<Table, T>& row, int64_t i,
                         bool streaming) {
  prefetch_inputs<Table, T, Calls{.extras = false}>(call, row, i, kTensorNumbers<Table>);
  if (!streaming) {
    for (void* result : row.results) {
      prefetch_block</*kForWriting=*/true>(static_cast<T*>(result) + i);
    }
  }
}

// f(i) for each whole block of n elements, and f(i, n - i) for what is left.
template <typename F>
inline void for_each_block(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    f(i);
  }
  if (i < n) {
    f(i, n - i);
  }
}

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
