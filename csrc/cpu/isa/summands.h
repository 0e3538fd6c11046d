// What a row is summed over, and how its results are stored: of whole rows and of parts.
#pragma once

#include "rows.h"

// Flat: what is not inlined passes its blocks through memory. Where vectors are arrays, all of it
// in one function takes minutes to compile; how much is inlined there, setup.py says (INLINING).
#if defined(CPU_CAPABILITY_DEFAULT) && defined(__x86_64__)
#define MLXNORM_FLAT
#else
#define MLXNORM_FLAT [[gnu::flatten]]
#endif

namespace mlxnorm::cpu::CPU_CAPABILITY {
namespace {

template <typename Formula>
constexpr bool kComputesFirst = int(Formula::kFirst) == int(kComputed);

// What the sums of a row are over. What is computed for them is kept in scratch.
template <typename Formula>
struct Summands {
  float* scratch;

  Block first(auto piece) const {
    const Block values = Formula::first_sum(piece);
    if constexpr (kComputesFirst<Formula>) {
      store_block<float>(scratch + piece.i, values);
    }
    return values;
  }

  Block first_again(auto piece) const {
    return kComputesFirst<Formula> ? load_block<float>(scratch + piece.i)
                                   : Formula::first_sum(piece);
  }

  Block second(auto piece) const {
    const Block values = Formula::second_sum(piece, first_again(piece));
    store_block<float>(scratch + piece.i, values);
    return values;
  }

  // What the last sum was over.
  Block last_again(auto piece) const {
    return Formula::kSums == 2 ? load_block<float>(scratch + piece.i) : first_again(piece);
  }
};

// Of a result; what is not whole is not streamed.
template <typename T, bool kStreams>
struct Store {
  void operator()(auto* result, Block values, auto... n) const {
    if constexpr (kStreams && sizeof...(n) == 0) {
      stream_block<T>(result, values);
    } else {
      store_block<T>(result, values, n...);
    }
  }
};

}  // namespace
}  // namespace mlxnorm::cpu::CPU_CAPABILITY
