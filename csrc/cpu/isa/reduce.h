// Sums of a row.
#pragma once

#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "blocks.h"

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

// kRounds: squares are rounded first, as an op of their own would.
template <typename T, bool kRounds>
inline Block plus_squares(Block sum, Block block) {
  if constexpr (kRounds) {
    return sum + round_to<T>(block * block);
  } else {
    return {at::vec::fmadd(block.low, block.low, sum.low),
            at::vec::fmadd(block.high, block.high, sum.high)};
  }
}

// Sum of squares of a run of a row of T. Element i is added to partial sum i % kLanes and the
// partial sums are folded in halves, whatever the vectors: the order depends on dim alone, and
// instruction sets with a fused multiply-add agree to the bit. Every op sums with this, so that
// fused and single ops do.
template <typename T, bool kRounds = false>
class SumOfSquares {
 public:
  static constexpr int64_t kLanes = 64;
  static constexpr int64_t kBlocks = kLanes / kBlock;

  // The error of a float sum grows with its number of steps, so runs of few steps are added in
  // double. 16-bit inputs, T, allow longer ones: their squares have bits to spare, and an end of
  // a run weighs more beside half the bytes.
  static constexpr int64_t kSteps = sizeof(T) == sizeof(float) ? 4 : 16;
  static constexpr int64_t kRun = kSteps * kLanes;

  // PyTorch 2.8's Vectorized() leaves its lanes undefined.
  SumOfSquares() { std::fill(std::begin(sums_), std::end(sums_), Vec(0.0f)); }

  // Of the block at element i, a multiple of kBlock; kSlot is i / kBlock % kBlocks.
  template <int64_t kSlot>
  void add(Block block) {
    const Block sum = plus_squares<T, kRounds>({sums_[2 * kSlot], sums_[2 * kSlot + 1]}, block);
    sums_[2 * kSlot] = sum.low;
    sums_[2 * kSlot + 1] = sum.high;
  }

  static constexpr int64_t kLeft = kEvensAndOdds<T> ? 2 : 1;  // even and odd ones meet last

  // Of all partial sums, one vector, or one of the even and one of the odd ones.
  const Vec* folded() {
    for (int64_t vectors = kLanes / kVec; vectors > kLeft; vectors /= 2) {
      for (int64_t i = 0; i < vectors / 2; ++i) {
        sums_[i] = sums_[i] + sums_[i + vectors / 2];
      }
    }
    return sums_;
  }

  float total() {
    folded();
    // Folds in halves, too.
    const auto total_of = [](Vec sums) {
      return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, sums);
    };
    return kLeft == 2 ? total_of(sums_[0]) + total_of(sums_[1]) : total_of(sums_[0]);
  }

 private:
  Vec sums_[kLanes / kVec];
};

// load(i) and load(i, n) give the block at element i, and the first n elements of it.

// Of kRun elements from i, a multiple of kLanes.
template <typename Sum, typename Load, int64_t... kSlots>
inline float sum_of_run(int64_t i, Load load,
                        std::integer_sequence<int64_t, kSlots...> /*all blocks of the lanes*/) {
  Sum sum;
  for (int64_t step = 0; step < Sum::kSteps; ++step, i += Sum::kLanes) {
    (sum.template add<kSlots>(load(i + kSlots * kBlock)), ...);
  }
  return sum.total();
}

// Of the elements [i, dim), of which there may be none.
template <typename Sum, typename Load, int64_t... kSlots>
inline Sum sum_of_rest(int64_t i, int64_t dim, Load load,
                       std::integer_sequence<int64_t, kSlots...> /*all blocks of the lanes*/) {
  Sum sum;
  for (; i + Sum::kLanes <= dim; i += Sum::kLanes) {
    (sum.template add<kSlots>(load(i + kSlots * kBlock)), ...);
  }
  const auto add_rest = [&](auto slot) {
    if (i + kBlock <= dim) {
      sum.template add<slot()>(load(i));
    } else if (i < dim) {
      sum.template add<slot()>(load(i, dim - i));
    }
    i += kBlock;
  };
  (add_rest(std::integral_constant<int64_t, kSlots>()), ...);
  return sum;
}

// In runs, which are added in double.
template <typename T, bool kRounds = false, typename Load>
inline double sum_of_squares(int64_t dim, Load load) {
  using Sum = SumOfSquares<T, kRounds>;
  const auto slots = std::make_integer_sequence<int64_t, Sum::kBlocks>();
  const int64_t runs = dim / Sum::kRun * Sum::kRun;
  // First: all that there is in a short row.
  double sum = sum_of_rest<Sum>(runs, dim, load, slots).total();
  for (int64_t i = 0; i < runs; i += Sum::kRun) {
    sum += sum_of_run<Sum>(i, load, slots);
  }
  return sum;
}

// Of the runs [begin, end) of a row, the last of which is what whole runs leave of it.
template <typename Sum, typename Load>
inline void sums_of_runs(int64_t dim, int64_t begin, int64_t end, float* sums, Load load) {
  const auto slots = std::make_integer_sequence<int64_t, Sum::kBlocks>();
  for (int64_t run = begin; run < end; ++run) {
    const int64_t i = run * Sum::kRun;
    sums[run] = i + Sum::kRun <= dim ? sum_of_run<Sum>(i, load, slots)
                                     : sum_of_rest<Sum>(i, dim, load, slots).total();
  }
}

// Of the vectors a and b, in groups of kGroup lanes, the sums of the halves of each group.
template <int64_t kGroup, size_t... kLane>
inline Vec sums_of_halves(Vec a, Vec b, std::index_sequence<kLane...> /*of a vector*/) {
  typedef float Floats __attribute__((vector_size(sizeof(Vec))));
  constexpr auto from = [](int64_t lane) {
    return lane / (kGroup / 2) * kGroup + lane % (kGroup / 2);
  };
  const Floats x = std::bit_cast<Floats>(a), y = std::bit_cast<Floats>(b);
  return std::bit_cast<Vec>(__builtin_shufflevector(x, y, from(kLane)...) +
                            __builtin_shufflevector(x, y, from(kLane) + kGroup / 2 ...));
}

// totals[i] of the lanes of sums[i], which are overwritten, folded in halves as a row's are: all of
// them at once, with half of the instructions.
template <int64_t kCount, int64_t kGroup = kVec>
inline void totals_of(Vec* sums, float* totals) {
  if constexpr (kGroup == 1) {
    std::memcpy(totals, sums, kCount * sizeof(float));
  } else {
    constexpr int64_t kVectors = kCount * kGroup / kVec;
    for (int64_t i = 0; i < kVectors; i += 2) {
      const Vec next = sums[kVectors == 1 ? i : i + 1];
      sums[i / 2] = sums_of_halves<kGroup>(sums[i], next, std::make_index_sequence<kVec>());
    }
    totals_of<kCount, kGroup / 2>(sums, totals);
  }
}

// 1 / sqrt(mean of squares + eps), rounded once.
class InverseRms {
 public:
  InverseRms(int64_t dim, float eps)
      : inverse_dim_(1.0 / double(dim)), eps_(eps != 0.0f ? double(eps) : Limits::min()) {}

  float operator()(double sum_of_squares) const {
    // A root and a reciprocal of the same number, so that the processor works at both at once:
    // short rows wait for them. The limits keep 0 and infinity from meeting, as NaN, in the
    // product.
    const double mean = std::min(sum_of_squares * inverse_dim_ + eps_, Limits::max());
    return float(std::sqrt(mean) * (1.0 / mean));
  }

 private:
  using Limits = std::numeric_limits<double>;
  double inverse_dim_, eps_;
};

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
