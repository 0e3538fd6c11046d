// Where the rows of a call lie, and their blocks.
#pragma once

#include "piece.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

template <typename Table>
constexpr auto kTensorNumbers = std::make_index_sequence<std::size(Table::kTensors)>();
template <typename Table, size_t kFirst>
constexpr auto tensors_from() {
  return []<size_t... t>(std::index_sequence<t...>) {
    return std::index_sequence<t + kFirst...>();
  }(std::make_index_sequence<std::size(Table::kTensors) - kFirst>());
}
template <typename Table>
constexpr auto kResultNumbers = std::make_index_sequence<std::size(Table::kResults)>();

// Not inlined: what rows that are not evenly spaced cost is not paid by others.
[[gnu::noinline]] inline int64_t uneven_offset(const RowLayout& layout, int64_t row) {
  return row_offset(layout, uint64_t(row));
}

// Where the rows of a tensor begin. A layout as it is would be read again for each of them.
struct Spaced {
  char* first = nullptr;
  int64_t stride = 0;                 // in bytes
  const RowLayout* uneven = nullptr;  // then the stride is an element's

  Spaced() = default;
  Spaced(const void* tensor, const RowLayout& layout, int64_t size)
      : first(static_cast<char*>(const_cast<void*>(tensor))) {
    if (tensor != nullptr) {
      const bool even = is_evenly_spaced(layout);
      stride = even ? layout.stride0 * size : size;
      uneven = even ? nullptr : &layout;
    }
  }

  char* row(int64_t row) const {
    return first + (uneven == nullptr ? row : uneven_offset(*uneven, row)) * stride;
  }
};

// The type of a result, known when this is compiled but for those that are like a residual.
template <typename Table, typename T, Calls kCalls, size_t r>
inline TensorType result_type(const NormArguments& call) {
  constexpr size_t like = number_of<Table>(Table::kResults[r].like);
  if constexpr (!kCalls.even() && Table::kTensors[like].role == Role::residual) {
    return tensor_type(call.layout.tensor_types, like);
  }
  return kTensorType<T>;
}

// The rows of a call.
template <typename Table, typename T, Calls kCalls>
class Rows {
 public:
  explicit Rows(const NormArguments& call) : Rows(call, kTensors, kResults) {}

  Row<Table, T> operator[](int64_t row) const { return at(row, kTensors, kResults); }

 private:
  static constexpr auto kTensors = kTensorNumbers<Table>;
  static constexpr auto kResults = kResultNumbers<Table>;

  template <size_t... t, size_t... r>
  Rows(const NormArguments& call, std::index_sequence<t...>, std::index_sequence<r...>)
      : tensors_{spacing_of_tensor<t>(call)...}, results_{spacing_of_result<r>(call)...} {}

  template <size_t... t, size_t... r>
  Row<Table, T> at(int64_t row, std::index_sequence<t...>, std::index_sequence<r...>) const {
    return {{tensor_of_row<t>(row)...}, {results_[r].row(row)...}};
  }

  template <size_t t>
  static constexpr bool kIsMissing = !kCalls.extras && Table::kTensors[t].passing == Passing::extra;
  template <size_t t>
  static constexpr bool kIsOneRow = !kCalls.mixed && Table::kTensors[t].role == Role::weight;

  template <size_t t>
  const void* tensor_of_row(int64_t row) const {
    if constexpr (kIsMissing<t>) {
      return nullptr;
    } else if constexpr (kIsOneRow<t>) {
      return tensors_[t].first;
    } else {
      return tensors_[t].row(row);
    }
  }

  template <size_t t>
  static Spaced spacing_of_tensor(const NormArguments& call) {
    constexpr Role role = Table::kTensors[t].role;
    const int64_t size = has_dtype_of_results(role) || (kCalls.even() && role == Role::residual)
                             ? sizeof(T)
                             : element_size(tensor_type(call.layout.tensor_types, t));
    return {call.tensors[t], call.layout.tensors[t], size};
  }

  template <size_t r>
  static Spaced spacing_of_result(const NormArguments& call) {
    return {call.results[r], call.layout.results[r],
            element_size(result_type<Table, T, kCalls, r>(call))};
  }

  Spaced tensors_[std::size(Table::kTensors)], results_[std::size(Table::kResults)];
};

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
[[gnu::always_inline]] inline void prefetch_inputs(const NormArguments& call,
                                                   const Row<Table, T>& row, int64_t i,
                                                   std::index_sequence<t...>) {
  const auto prefetch = [&](auto number) __attribute__((always_inline)) {
    constexpr Role role = Table::kTensors[number()].role;
    if constexpr (has_dtype_of_results(role) || (kCalls.even() && role == Role::residual)) {
      prefetch_block(static_cast<const T*>(row.tensors[number()]) + i);
    } else if constexpr (role == Role::residual) {
      with_type<T>(tensor_type(call.layout.tensor_types, number()), row.tensors[number()],
                   [i](auto* values) { prefetch_block(values + i); });
    }
  };
  const auto prefetch_further_experts = [&](auto number) __attribute__((always_inline)) {
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

template <typename Table>
constexpr bool kRoutes = has<Table>(Role::routing_weights);

// The routing weights of a row in float32: each block of it needs them all.
template <typename Table, typename T>
inline const float* unpack_routing_weights(const NormArguments& call, const Row<Table, T>& row,
                                           float* scratch) {
  constexpr size_t kRouting = number_of<Table>("routing_weights");
  with_type<T>(tensor_type(call.layout.tensor_types, int(kRouting)), row.tensors[kRouting],
               [&](auto* values) { std::copy_n(values, call.layout.top_k, scratch); });
  return scratch;
}

// Many rows: their one row of each weight in float32, with the offset, as blocks of T, once for all
// of them. Returns the scratch that is left.
template <typename Table, typename T>
[[gnu::noinline, gnu::flatten]] float* unpack_weights(NormArguments& call, float* scratch) {
  const float offset = call.options.numbers[kWeightOffset];
  for (int t = 0; t < int(std::size(Table::kTensors)); ++t) {
    if (!has_bit(kWeights<Table>, t)) {
      continue;
    }
    with_type<T>(tensor_type(call.layout.tensor_types, t), call.tensors[t], [&](auto* values) {
      for_each_block(call.layout.dim, [&](int64_t i, auto... n) {
        store_block<float>(scratch + i, load_block<T>(values + i, n...) + offset);
      });
    });
    call.tensors[t] = scratch;
    scratch += scratch_size(call.layout.dim);
  }
  return scratch;
}

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
