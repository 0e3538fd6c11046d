// The kernel of every op: a formula (shaders/formulas/) applied to the rows of a call.
#pragma once

#include "../../ops/fits.h"
#include "piece.h"
#include "reduce.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

static_assert(kLargestBlock % kBlock == 0, "scratch holds whole blocks");

template <typename Table>
constexpr auto kTensorNumbers = std::make_index_sequence<std::size(Table::kTensors)>();
template <typename Table>
constexpr auto kResultNumbers = std::make_index_sequence<std::size(Table::kResults)>();

template <typename Table, typename T, Calls kCalls, size_t t>
inline const void* tensor_of_row(const NormArguments& call, int64_t row) {
  constexpr Role role = Table::kTensors[t].role;
  if constexpr (kCalls == Calls::plain && role == Role::weight) {
    return call.tensors[t];
  }
  if constexpr (kCalls != Calls::any && Table::kTensors[t].passing == Passing::extra) {
    return nullptr;
  }
  const int64_t size =
      has_dtype_of_results(role) || (kCalls != Calls::any && role == Role::residual)
          ? sizeof(T)
          : element_size(tensor_type(call.layout.tensor_types, t));
  return static_cast<const char*>(call.tensors[t]) +
         row_offset(call.layout.tensors[t], uint64_t(row)) * size;
}

// The type of a result, known when this is compiled but for those that are like a residual.
template <typename Table, typename T, Calls kCalls, size_t r>
inline TensorType result_type(const NormArguments& call) {
  constexpr size_t like = number_of<Table>(Table::kResults[r].like);
  if constexpr (kCalls == Calls::any && Table::kTensors[like].role == Role::residual) {
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
      f(i, static_cast<T*>(row.results[i]));
    } else {
      f(i, static_cast<float*>(row.results[i]));
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
    if constexpr (has_dtype_of_results(role) || (kCalls != Calls::any && role == Role::residual)) {
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
  prefetch_inputs<Table, T, Calls::usual>(call, row, i, kTensorNumbers<Table>);
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

inline int64_t head_dim(const NormLayout& layout) {
  return layout.heads == 1 ? layout.dim : layout.dim / layout.heads;
}

inline bool has_whole_parts(const NormLayout& layout) {
  return layout.rotated / 2 % kBlock == 0 && (layout.heads == 1 || head_dim(layout) % kBlock == 0);
}

// One of the heads of a row, as if it were one.
template <typename Table, typename T>
inline Row<Table, T> head_of(const NormArguments& call, Row<Table, T> row, int64_t head) {
  if (head != 0) {
    for (size_t t = 0; t < std::size(row.tensors); ++t) {
      const int64_t size = element_size(tensor_type(call.layout.tensor_types, int(t)));
      row.tensors[t] =
          static_cast<const char*>(row.tensors[t]) + head * call.layout.steps[t] * size;
    }
    row.results[0] = static_cast<T*>(row.results[0]) + head * head_dim(call.layout);
  }
  return row;
}

// In float32, for each element of what is rotated, from a table of any type, for pairs or full.
// Not inlined: it would take registers from the kernels.
[[gnu::noinline, gnu::flatten]] void unpack_angles(const NormArguments& call, TensorType type,
                                                   const void* table, float* angles) {
  const uint32_t choices = call.options.choices;
  const int64_t rotated = call.layout.rotated, half = rotated / 2;
  with_type<float>(type, table, [=](auto* values) {
    if (choice_in(choices, kFullTables)) {
      for_each_block(rotated, [=](int64_t i, auto... n) {
        store_block(angles + i, load_block(values + i, n...), n...);
      });
    } else if (choice_in(choices, kInterleaved)) {
      for_each_block(rotated, [=](int64_t i, auto... n) {
        const int64_t pairs = sizeof...(n) == 0 ? kVec : (rotated - i) / 2;
        store_block(angles + i, each_twice(load_block(values + i / 2, pairs).low), n...);
      });
    } else {
      for_each_block(half, [=](int64_t i, auto... n) {
        const Block of_pairs = load_block(values + i, n...);
        store_block(angles + i, of_pairs, n...);
        store_block(angles + half + i, of_pairs, n...);
      });
    }
  });
}

// Keeps the tables that were unpacked last: heads that share them mostly follow one another.
template <typename Table, typename T>
class UnpackedAngles {
 public:
  static constexpr int kTables = std::popcount(kAngles<Table>);

  // `scratch` holds kTables rows.
  UnpackedAngles(const NormArguments& call, float* scratch) : call_(call), scratch_(scratch) {}

  // The head with them in the place of its tables.
  Row<Table, T> of_head(Row<Table, T> head) {
    float* angles = scratch_;
    for (int t = 0; t < int(std::size(head.tensors)); ++t) {
      if (!has_bit(kAngles<Table>, t)) {
        continue;
      }
      const TensorType type = tensor_type(call_.layout.tensor_types, t);
      const bool is_unpacked = type == kFloat32 && choice_in(call_.options.choices, kFullTables);
      if (!is_unpacked) {
        if (head.tensors[t] != tables_[t]) {
          tables_[t] = head.tensors[t];
          unpack_angles(call_, type, tables_[t], angles);
        }
        head.tensors[t] = angles;
      }
      angles += scratch_size(call_.layout.dim);
    }
    return head;
  }

 private:
  const NormArguments& call_;
  float* scratch_;
  const void* tables_[std::size(Table::kTensors)] = {};  // that are unpacked
};

// The parts of a head: two halves or all of what is rotated, and what passes through. Both of a
// pair are read before either is written.
template <typename Formula, Calls kCalls, typename Table, typename T, typename Store,
          typename Prefetch>
inline void finish_head(const NormArguments& call, const Row<Table, T>& head, float inverse_rms,
                        const Store& store, const Prefetch& prefetch) {
  T* const result = static_cast<T*>(head.results[0]);
  const auto piece_at = [&](int64_t i, auto... n) {
    return Piece<Table, T, kCalls, sizeof...(n) == 0>{call, head, inverse_rms, i, n...};
  };
  const auto normed = [&](auto piece) {
    return Formula::finish(piece, Formula::first_sum(piece)).values[0];
  };
  const auto rotate = [&](auto piece, Block y, Block turned, auto... n) {
    store(result + piece.i, Formula::rotate(piece, y, turned).values[0], n...);
  };
  const int64_t rotated = call.layout.rotated, half = rotated / 2;
  if (choice_in(call.options.choices, kInterleaved)) {
    for_each_block(rotated, [&](int64_t i, auto... n) {
      prefetch(i);
      const auto piece = piece_at(i, n...);
      const Block y = normed(piece);
      rotate(piece, y, quarter_turn(y), n...);
    });
  } else {
    for_each_block(half, [&](int64_t i, auto... n) {
      prefetch(i);
      prefetch(half + i);
      const auto first = piece_at(i, n...), second = piece_at(half + i, n...);
      const Block y0 = normed(first), y1 = normed(second);
      rotate(first, y0, -y1, n...);
      rotate(second, y1, y0, n...);
    });
  }
  for_each_block(head_dim(call.layout) - rotated, [&](int64_t i, auto... n) {
    prefetch(rotated + i);
    const auto piece = piece_at(rotated + i, n...);
    store(result + piece.i, normed(piece), n...);
  });
}

// For unpacked angles, or what a sum is over, if that is more than an input as it is.
template <typename Table, typename Formula, typename T>
constexpr int kScratchRows = Rotates<Formula>::value ? UnpackedAngles<Table, T>::kTables
                                                     : Formula::kKeepFirst || Formula::kSums == 2;

// Do rows that follow one another share the gate, and is it worth keeping once it is activated?
template <typename Table>
bool keeps_gate(const NormArguments& call) {
  constexpr size_t kGate = number_of<Table>("gate");
  if constexpr (kGate < std::size(Table::kTensors) &&
                has_option(Table::kOptions, kGateActivation)) {
    const RowLayout& rows = call.layout.tensors[kGate];
    return call.tensors[kGate] != nullptr &&
           choice_in(call.options.choices, kGateActivation) != kNoGateActivation &&
           call.layout.rows > 1 && row_offset(rows, 0) == row_offset(rows, 1);
  }
  return false;
}

// Short rows of 16 bits are summed several at a time before they are finished: each waits for its
// fold, root and division while the next ones are summed. In float32 that gains nothing.
template <typename Formula, typename T>
constexpr bool kSumsTogether = !Formula::kKeepFirst && Formula::kSums == 1 && sizeof(T) == 2;
constexpr int64_t kShortRow = 512, kRowsTogether = 8;

// The inverse rms of each row of [begin, end).
template <typename Table, typename Formula, typename T, Calls kCalls>
inline void sum_together(const NormArguments& call, const InverseRms& inverse_rms_of, int64_t begin,
                         int64_t end, float* inverse_rms) {
  for (int64_t row = begin; row < end; ++row) {
    const Row<Table, T> here = row_of<Table, T, kCalls>(call, row);
    const auto first = [&](int64_t i, auto... n) {
      return Formula::first_sum(
          Piece<Table, T, kCalls, sizeof...(n) == 0>{call, here, 0.0f, i, n...});
    };
    *inverse_rms++ = inverse_rms_of(sum_of_squares<T>(call.layout.dim, first));
  }
}

// Flat: what is not inlined passes its blocks through memory. Where vectors are arrays, they are in
// memory anyway, and all of it in one function takes minutes to compile.
#if defined(CPU_CAPABILITY_DEFAULT) && defined(__x86_64__)
#define MLXNORM_FLAT
#else
#define MLXNORM_FLAT [[gnu::flatten]]
#endif
template <typename Table, typename Formula, typename T, Calls kCalls>
MLXNORM_FLAT void norm_rows(const NormArguments& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t dim = call.layout.dim;
  const InverseRms inverse_rms_of(dim, call.options.eps);
  // Parts of heads may end within a block.
  const bool streaming =
      call.streaming && (!Rotates<Formula>::value || has_whole_parts(call.layout));
  const int64_t together = kSumsTogether<Formula, T> && dim <= kShortRow ? kRowsTogether : 1;
  const int64_t rows_ahead = prefetch_distance<T>(dim) + together - 1;
  float inverses[kRowsTogether];
  const float* next_inverse = inverses;
  int64_t summed = begin;  // the end of the rows that these are of
  UnpackedAngles<Table, T> angles(call, scratch);
  const void* kept_gate = nullptr;
  float* const kept = scratch + (kScratchRows<Table, Formula, T> * scratch_size(dim));
  for (int64_t row = begin; row < end; ++row) {
    Row<Table, T> here = row_of<Table, T, kCalls>(call, row);
    float inverse_rms = 0.0f;
    // A number of elements is given for the last piece, when it is not whole.
    const auto piece_at = [&](int64_t i, auto... n) {
      return Piece<Table, T, kCalls, sizeof...(n) == 0>{call, here, inverse_rms, i, n...};
    };
    // Of the piece at hand, what the last sum was over.
    const auto first_again = [&](auto piece) {
      return Formula::kKeepFirst ? load_block(scratch + piece.i) : Formula::first_sum(piece);
    };
    const auto last_again = [&](auto piece) {
      return Formula::kSums == 2 ? load_block(scratch + piece.i) : first_again(piece);
    };

    if constexpr (kCalls == Calls::any) {
      if (keeps_gate<Table>(call)) {
        constexpr size_t kGate = number_of<Table>("gate");
        if (here.tensors[kGate] != kept_gate) {
          kept_gate = here.tensors[kGate];
          for_each_block(dim, [&](int64_t i, auto... n) {
            store_block(kept + i, activated_gate(piece_at(i, n...), kGate));
          });
        }
        here.kept = kept;
      }
    }

    const auto first = [&](int64_t i, auto... n) {
      const Block values = Formula::first_sum(piece_at(i, n...));
      if constexpr (Formula::kKeepFirst) {
        store_block(scratch + i, values);
      }
      return values;
    };
    if constexpr (kSumsTogether<Formula, T>) {
      if (row == summed) {
        summed = std::min(row + together, end);
        sum_together<Table, Formula, T, kCalls>(call, inverse_rms_of, row, summed, inverses);
        next_inverse = inverses;
      }
      inverse_rms = *next_inverse++;
    } else {
      inverse_rms = inverse_rms_of(sum_of_squares<T>(dim, first));
    }
    if constexpr (Formula::kSums == 2) {
      const auto second = [&](int64_t i, auto... n) {
        const auto piece = piece_at(i, n...);
        const Block values = Formula::second_sum(piece, first_again(piece));
        store_block(scratch + i, values);
        return values;
      };
      inverse_rms = inverse_rms_of(sum_of_squares<T>(dim, second));
    }

    const auto store = [&](auto* result, Block values, auto... n) {
      if constexpr (sizeof...(n) == 0) {
        if (streaming) {
          return stream_block(result, values);
        }
      }
      store_block(result, values, n...);
    };
    // Rows to come are fetched while this one, already in the cache, is written.
    const Row<Table, T> later = row_of<Table, T, kCalls>(call, std::min(row + rows_ahead, end - 1));
    if constexpr (Rotates<Formula>::value) {
      for (int64_t head = 0; head < call.layout.heads; ++head) {
        const Row<Table, T> ahead = head_of(call, later, head);
        finish_head<Formula, kCalls>(
            call, angles.of_head(head_of(call, here, head)), inverse_rms, store,
            [&](int64_t i) { prefetch_row<Table, T>(call, ahead, i, streaming); });
      }
      continue;
    }
    const auto finish = [&](int64_t i, auto... n) {
      const auto piece = piece_at(i, n...);
      const auto results = Formula::finish(piece, last_again(piece));
      const auto write = [&](size_t r, auto* values) {
        store(values + i, results.values[r], n...);
      };
      for_each_result<Table, T, kCalls>(call, here, write, kResultNumbers<Table>);
    };
    int64_t i = 0;
    for (; i + kBlock <= dim; i += kBlock) {
      prefetch_inputs<Table, T, kCalls>(call, later, i, kTensorNumbers<Table>);
      if (!streaming) {
        for_each_result<Table, T, kCalls>(
            call, later,
            [i](size_t /*r*/, auto* values) { prefetch_block</*kForWriting=*/true>(values + i); },
            kResultNumbers<Table>);
      }
      finish(i);
    }
    if (i < dim) {
      finish(i, dim - i);
    }
  }
  if (streaming) {
    stream_fence();
  }
}

// Nothing is extra, no factor is another than 1, and a residual has the dtype of the inputs.
template <typename Table, typename T>
bool is_usual(const NormArguments& call) {
  for (size_t t = 0; t < std::size(Table::kTensors); ++t) {
    if (has_bit(kResiduals<Table>, int(t)) &&
        tensor_type(call.layout.tensor_types, int(t)) != kTensorType<T>) {
      return false;
    }
    if (has_bit(kExtras<Table>, int(t)) && call.tensors[t] != nullptr) {
      return false;
    }
  }
  for (const Number factor : {kAlpha, kBeta}) {
    if (has_option(Table::kOptions, factor) && call.options.numbers[factor] != 1.0f) {
      return false;
    }
  }
  return true;
}

// Of usual calls: every weight is there in the dtype of the inputs, one row that all share, no
// value of theirs is rounded on the way (in float32 none ever is), and the result has no
// activation.
template <typename Table, typename T>
bool is_plain(const NormArguments& call) {
  for (size_t t = 0; t < std::size(Table::kTensors); ++t) {
    if (has_bit(kWeights<Table>, int(t)) &&
        (tensor_type(call.layout.tensor_types, int(t)) != kTensorType<T> ||
         !is_one_row(call.layout.tensors[t]))) {
      return false;
    }
  }
  const uint32_t choices = call.options.choices;
  if (kActivatesResult<Table> && choice_in(choices, kActivation) != kNoActivation) {
    return false;
  }
  return std::is_same_v<T, float> ||
         (choice_in(choices, kCastingMode) == kGemma && !choice_in(choices, kRoundIntermediates));
}

template <typename Table, typename Formula, typename T>
NormKernel select_kernel(const NormArguments& call) {
  using AnyPiece = Piece<Table, T, Calls::any, true>;
  constexpr bool kHasSecond = requires(AnyPiece piece, Block x) { Formula::second_sum(piece, x); };
  static_assert(kHasSecond == (Formula::kSums == 2), "a second sum that nobody would take");
  if constexpr (kExtras<Table> != 0 || kResiduals<Table> != 0) {
    if (!is_usual<Table, T>(call)) {
      return {norm_rows<Table, Formula, T, Calls::any>,
              kScratchRows<Table, Formula, T> + keeps_gate<Table>(call)};
    }
  }
  return {is_plain<Table, T>(call) ? norm_rows<Table, Formula, T, Calls::plain>
                                   : norm_rows<Table, Formula, T, Calls::usual>,
          kScratchRows<Table, Formula, T>};
}

template <typename Table, typename Formula>
NormKernel select_kernel(const NormArguments& call) {
  switch (call.layout.dtype) {
    case DType::float16:
      return select_kernel<Table, Formula, c10::Half>(call);
    case DType::bfloat16:
      return select_kernel<Table, Formula, c10::BFloat16>(call);
    default:
      return select_kernel<Table, Formula, float>(call);
  }
}

}  // namespace

#define MLXNORM_DEFINE_KERNEL(op)                                                  \
  NormKernel op##_kernel(const NormArguments& call) {                              \
    static_assert(fits<ops::op, formula::op>());                                   \
    return select_kernel<ops::op, typename SegmentOf<formula::op, 0>::type>(call); \
  }

// Of an op whose segments are norms as that other op has them.
#define MLXNORM_DEFINE_SEGMENTS(op, segment)          \
  NormKernel op##_kernel(const NormArguments& call) { \
    static_assert(fits<ops::op, formula::op>());      \
    return segment##_kernel(call);                    \
  }

}  // namespace mlxnorm::cpu::CPU_CAPABILITY
