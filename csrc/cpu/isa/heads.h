// The heads of a row whose pairs are rotated.
#pragma once

#include "rows.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

inline int64_t head_dim(const NormLayout& layout) {
  return layout.heads == 1 ? layout.dim : layout.dim / layout.heads;
}

inline bool has_whole_parts(const NormLayout& layout) {
  return layout.rotated / 2 % kBlock == 0 && (layout.heads == 1 || head_dim(layout) % kBlock == 0);
}

// One of the heads of a row, as if it were one.
template <Calls kCalls, typename Table, typename T>
inline Row<Table, T> head_of(const NormArguments& call, Row<Table, T> row, int64_t head) {
  if (head != 0) {
    for (size_t t = 0; t < std::size(row.tensors); ++t) {
      const bool is_unpacked = kCalls.unpacked && has_bit(kWeights<Table>, int(t));
      const int64_t size =
          element_size(is_unpacked ? kFloat32 : tensor_type(call.layout.tensor_types, int(t)));
      row.tensors[t] =
          static_cast<const char*>(row.tensors[t]) + head * call.layout.steps[t] * size;
    }
    row.results[0] = static_cast<T*>(row.results[0]) + head * head_dim(call.layout);
  }
  return row;
}

// In float32, for each element of what is rotated, from a table of any type, for pairs or full.
// Whole blocks are vectors as rows of T have them. Not inlined: it would take registers from the
// kernels.
template <typename T>
[[gnu::noinline, gnu::flatten]] void unpack_angles(const NormArguments& call, TensorType type,
                                                   const void* table, float* angles) {
  const int64_t rotated = call.layout.rotated, half = rotated / 2;
  const bool is_full = choice_in(call.options.choices, kFullTables);
  const bool interleaved = choice_in(call.options.choices, kInterleaved);
  const auto store = [=](int64_t i, Block block, auto... n) {
    if constexpr (sizeof...(n) == 0) {
      store_block<float>(angles + i, block);
    } else {
      store_block<T>(angles + i, block, n...);
    }
  };
  with_type<float>(type, table, [=](auto* values) {
    if (interleaved) {
      for_each_block(rotated, [=](int64_t i, auto... n) {
        if (is_full) {
          return store(i, load_block<T>(values + i, n...), n...);
        }
        const int64_t pairs = sizeof...(n) == 0 ? kVec : (rotated - i) / 2;
        store(i, each_twice<T>(load_block<float>(values + i / 2, pairs).low), n...);
      });
    } else {
      for_each_block(half, [=](int64_t i, auto... n) {
        store(i, load_block<T>(values + i, n...), n...);
        store(half + i, load_block<T>(values + (is_full ? half + i : i), n...), n...);
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
      const bool is_unpacked =
          type == kFloat32 && !kEvensAndOdds<T> && choice_in(call_.options.choices, kFullTables);
      if (!is_unpacked) {
        if (head.tensors[t] != tables_[t]) {
          tables_[t] = head.tensors[t];
          unpack_angles<T>(call_, type, tables_[t], angles);
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
inline void finish_head(const NormArguments& call, const Row<Table, T>& head, float statistic,
                        const Store& store, const Prefetch& prefetch) {
  T* const result = static_cast<T*>(head.results[0]);
  const auto piece_at = [&](int64_t i, auto... n) {
    return Piece<Table, T, kCalls, sizeof...(n) == 0>{call, head, statistic, i, n...};
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
      rotate(piece, y, quarter_turn<T>(y), n...);
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

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
