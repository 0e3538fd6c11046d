// The kernels of every op: a formula (formulas/) applied to the rows of its tensors.
//
// Three of them by length of the row, each with vector and scalar access:
//   norm_simd  up to 64 words: a few lanes of a SIMD group share a row, no barrier
//   norm_row   a threadgroup has the row in its registers: memory is read once
//   norm_loop  longer than the registers hold: what they do not keep is read again for every sum
//              and the results
#pragma once

#include "heads.h"
#include "statistic.h"

constant uint lanes_per_row [[function_constant(kLanesPerRowConstant)]];

// ---- the threads that share a row ---------------------------------------------------------------

METAL_FUNC uint4 from_lane(uint4 word, ushort lane) {
  return uint4(simd_shuffle(word.x, lane), simd_shuffle(word.y, lane), simd_shuffle(word.z, lane),
               simd_shuffle(word.w, lane));
}

// After the last lane's, or thread's, word comes the next one of the first.
template <int kWords, typename Results>
METAL_FUNC uint4 first_after(thread const Results* results, int k, int r, bool is_first) {
  uint4 word = results[k].words[r][0];
  if (is_first && k + 1 < kWords) {
    word = results[min(k + 1, kWords - 1)].words[r][0];
  }
  return word;
}

struct SimdgroupLanes {
  enum { kMostResults = kMaxResults };

  uint lane;   // of those that share the row
  uint first;  // of them, in the SIMD group

  template <int kWords>
  METAL_FUNC float sum(thread float* v, int /*which*/) const {
    return lanes_sum_of_words<kWords>(v, lane, lanes_per_row);
  }

  template <int kWords, int kResults, typename Results>
  METAL_FUNC void find_next(thread const Results* results, thread Beside* beside) const {
    const uint next = first + (lane + 1) % lanes_per_row;
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
#pragma unroll
      for (int r = 0; r < kResults; ++r) {
        beside[k * kResults + r].next =
            from_lane(first_after<kWords>(results, k, r, lane == 0), ushort(next));
      }
    }
  }
};

// Sums have scratch of their own: see threadgroup_sum. So have the words of first lanes.
struct Threadgroup {
  enum { kMostResults = 2 };

  threadgroup float* scratch;
  threadgroup uint4* firsts;
  uint simdgroup, lane, simdgroups;

  template <int kWords>
  METAL_FUNC float sum(thread float* v, int which) const {
    return threadgroup_sum<kWords>(v, scratch + which * kWords * kMaxSimdgroups, simdgroup, lane,
                                   simdgroups);
  }

  template <int kWords, int kResults, typename Results>
  METAL_FUNC void find_next(thread const Results* results, thread Beside* beside) const {
    const bool is_first = simdgroup == 0;
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
#pragma unroll
      for (int r = 0; r < kResults; ++r) {
        if (lane == 0) {
          firsts[(k * kResults + r) * simdgroups + simdgroup] =
              first_after<kWords>(results, k, r, is_first);
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint next_simdgroup = simdgroup + 1 < simdgroups ? simdgroup + 1 : 0;
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
#pragma unroll
      for (int r = 0; r < kResults; ++r) {
        uint4 next = from_lane(results[k].words[r][0], ushort((lane + 1) % kSimdWidth));
        if (lane == kSimdWidth - 1) {
          next = firsts[(k * kResults + r) * simdgroups + next_simdgroup];
        }
        beside[k * kResults + r].next = next;
      }
    }
  }
};

METAL_FUNC Threadgroup threadgroup_with(threadgroup float* scratch, threadgroup uint4* firsts,
                                        uint simdgroup, uint lane, uint simdgroups) {
  Threadgroup result;
  result.scratch = scratch;
  result.firsts = firsts;
  result.simdgroup = simdgroup;
  result.lane = lane;
  result.simdgroups = simdgroups;
  return result;
}

// ---- one row ------------------------------------------------------------------------------------

// Formula::second_sum, which only formulas of two sums have.
template <typename Formula, int kSums = Formula::kSums>
struct SecondSum {
  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values values(Piece piece, Values x) {
    return Formula::second_sum(piece, x);
  }
};
template <typename Formula>
struct SecondSum<Formula, 1> {
  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Values values(Piece /*piece*/, Values x) {
    return x;
  }
};

// The results at a word.
template <typename Formula, typename T>
METAL_FUNC void finish(Piece<Formula, T, true> piece, ValuesOf<T> x, uint /*lane*/) {
  if (piece.is_there()) {
    piece.store(Formula::finish(piece, x));
  }
}

// Where a row begins between boundaries, a SIMD group, all of which comes here, stores what its
// threads have together.
template <typename Formula, typename T>
METAL_FUNC void finish(Piece<Formula, T, false> piece, ValuesOf<T> x, uint lane) {
  const Packed<T, Formula::kResults> results = piece.packed(Formula::finish(piece, x));
  Beside beside[Formula::kResults];
#pragma unroll
  for (int r = 0; r < Formula::kResults; ++r) {
    beside[r] = {lane > 0, lane + 1 < kSimdWidth,
                 from_lane(results.words[r][0], ushort((lane + 1) % kSimdWidth))};
  }
  piece.store_together(results, beside);
}

// The results at all words of a row, of which a thread has some. With `writes` false it is just
// there to complete a SIMD group.
template <typename Formula, typename T, int kWords, typename Threads>
METAL_FUNC void finish_row(thread const Piece<Formula, T, true>* pieces,
                           thread const ValuesOf<T>* values, Threads threads, bool writes) {
  if (writes) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      finish(pieces[k], values[k], threads.lane);
    }
  }
}

// Together with threads of other SIMD groups as well, if there are registers for all results.
template <typename Formula, typename T, int kWords, typename Threads>
METAL_FUNC void finish_row(thread const Piece<Formula, T, false>* pieces,
                           thread const ValuesOf<T>* values, Threads threads, bool writes) {
  enum { kResults = Formula::kResults };
  if (kResults > int(Threads::kMostResults)) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      finish(pieces[k], values[k], threads.lane);
    }
    return;
  }
  Packed<T, kResults> results[kWords];
  Beside beside[kWords * int(kResults)];
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    results[k] = pieces[k].packed(Formula::finish(pieces[k], values[k]));
#pragma unroll
    for (int r = 0; r < kResults; ++r) {
      beside[k * kResults + r].before = pieces[k].word > 0;
      beside[k * kResults + r].after = true;
    }
  }
  threads.template find_next<kWords, kResults>(results, beside);
  if (writes) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      pieces[k].store_together(results[k], beside + k * kResults);
    }
  }
}

// Of words begin, begin + step, … kWords of them are this thread's.
template <typename Formula, typename T, int kWords, bool kVector, typename Threads>
METAL_FUNC void norm_in_registers(thread const Tensors<T>& tensors, constant NormParams& params,
                                  uint begin, uint step, Threads threads, bool writes) {
  Prefetched<Formula, T, kVector> prefetched[kWords];
  Piece<Formula, T, kVector> pieces[kWords];
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    pieces[k] = piece_at(tensors, prefetched[k], params, begin + k * step);
    if (prefetched_tensors != 0 && pieces[k].is_there()) {
      prefetched[k].load(tensors, pieces[k].word, params.dim);
    }
  }

  ValuesOf<T> values[kWords];
  float sums[kWords];
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    values[k] = pieces[k].is_there() ? Formula::first_sum(pieces[k]) : splat<T>(0.0f);
    sums[k] = squares(values[k]);
  }
  float of_sum = statistic<T>(threads.template sum<kWords>(sums, 0), params);

  if (Formula::kSums == 2) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      if (pieces[k].is_there()) {
        pieces[k].statistic = of_sum;
        values[k] = SecondSum<Formula>::values(pieces[k], values[k]);
      }
      sums[k] = squares(values[k]);
    }
    of_sum = statistic<T>(threads.template sum<kWords>(sums, 1), params);
  }

#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    pieces[k].statistic = of_sum;
  }
  if (Rotates<Formula>::value) {
    if (writes) {
      Heads<Formula>::template store<kWords>(pieces, values, begin, step);
    }
    return;
  }
  finish_row<Formula, T, kWords>(pieces, values, threads, writes);
}

// What of a word is kept from the first sum on: the input as it is, or what was worked out.
template <typename Formula, typename T, bool kComputes = int(Formula::kFirst) == int(kComputed)>
struct Kept {
  enum { kRegisters = 4 };
  uint4 word;

  template <typename Piece>
  METAL_FUNC void read(Piece piece) {
    word = piece.load_word(piece.tensors->input(Formula::kFirst));
  }
  template <typename Piece>
  METAL_FUNC ValuesOf<T> values(Piece piece) const {
    return piece.unpacked(word);
  }
};
template <typename Formula, typename T>
struct Kept<Formula, T, true> {
  enum { kRegisters = Element<T>::kPerWord };
  ValuesOf<T> computed;

  template <typename Piece>
  METAL_FUNC void read(Piece piece) {
    computed = Formula::first_sum(piece);
  }
  template <typename Piece>
  METAL_FUNC ValuesOf<T> values(Piece /*piece*/) const {
    return computed;
  }
};

// Words thread, thread + threads, … of the row are this thread's, however many. It keeps the first
// ones and reads the others again; the last time from the end of the row, which is nearest.
template <typename Formula, typename T, bool kVector>
struct RowInMemory {
  typedef Piece<Formula, T, kVector> Word;
  enum { kKept = int(kKeptRegisters) / int(Kept<Formula, T>::kRegisters) };

  Word piece;
  Threadgroup threads;
  uint thread_index, thread_count, turns;
  Kept<Formula, T> kept[kKept];
  float of_first_sum;

  METAL_FUNC Word at(uint turn) const {
    Word result = piece;
    result.word = thread_index + turn * thread_count;
    result.statistic = of_first_sum;
    return result;
  }

  // What the first sum, or the last one, is over, from what the first one is over.
  template <bool kIsFirst>
  METAL_FUNC ValuesOf<T> summed(Word word, ValuesOf<T> first) const {
    if (kIsFirst) {
      return first;
    }
    return SecondSum<Formula>::values(word, first);
  }

  // What is made of that sum.
  template <bool kIsFirst>
  METAL_FUNC float reduce() {
    CompensatedSum sum = {0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const Word word = at(k);
      if (word.is_there()) {
        if (kIsFirst) {
          kept[k].read(word);
        }
        sum.add(squares(summed<kIsFirst>(word, kept[k].values(word))));
      }
    }
    for (uint turn = kKept; turn < turns; ++turn) {
      const Word word = at(turn);
      if (word.is_there()) {
        sum.add(squares(summed<kIsFirst>(word, Formula::first_sum(word))));
      }
    }
    float total[1] = {sum.sum};
    return statistic<T>(threads.template sum<1>(total, kIsFirst ? 0 : 1), *piece.params);
  }

  METAL_FUNC void write(float of_last_sum) const {
    for (uint turn = turns; turn > kKept; --turn) {
      const Word word = at(turn - 1);
      write(word, word.is_there() ? Formula::first_sum(word) : splat<T>(0.0f), of_last_sum);
    }
#pragma unroll
    for (int k = kKept; k > 0; --k) {
      const Word word = at(k - 1);
      write(word, word.is_there() ? kept[k - 1].values(word) : splat<T>(0.0f), of_last_sum);
    }
  }

  METAL_FUNC void write(Word word, ValuesOf<T> first, float of_last_sum) const {
    ValuesOf<T> values = first;
    if (word.is_there()) {
      values = summed<false>(word, first);
    }
    word.statistic = of_last_sum;
    finish(word, values, threads.lane);
  }
};

template <typename Formula, typename T, bool kVector>
METAL_FUNC void norm_in_memory(thread const Tensors<T>& tensors, constant NormParams& params,
                               uint thread_index, uint thread_count, Threadgroup threads) {
  const Prefetched<Formula, T, kVector> nothing = {};
  const uint words = (params.dim - 1) / Element<T>::kPerWord + 1;
  RowInMemory<Formula, T, kVector> row;
  row.piece = piece_at(tensors, nothing, params, 0);
  row.threads = threads;
  row.thread_index = thread_index;
  row.thread_count = thread_count;
  row.turns = (words - 1) / thread_count + 1;
  row.of_first_sum = 0.0f;

  row.of_first_sum = row.template reduce<true>();
  const float of_last_sum = Formula::kSums == 2 ? row.template reduce<false>() : row.of_first_sum;
  if (Rotates<Formula>::value) {
    Heads<Formula>::store_from_memory(row.at(0), thread_index, thread_count);
  } else {
    row.write(of_last_sum);
  }
}

// ---- kernels ------------------------------------------------------------------------------------
// What one does with the rows of a segment, of which a threadgroup has one or some.

template <typename T, int kWords, bool kVector>
struct SimdRows {
  uint thread_index, threads;

  template <typename Formula>
  METAL_FUNC void run(Tensors<T> tensors, constant NormParams& params,
                      uint threadgroup_index) const {
    // In units of rows before lanes, so that the product with threads cannot overflow.
    const uint row_in_dispatch =
        threadgroup_index * (threads / lanes_per_row) + thread_index / lanes_per_row;
    // Lanes past the last row keep it company: SIMD functions need them all.
    const bool active = row_in_dispatch < params.rows;
    tensors.template move_to_row<Formula>(
        params.first_row + (active ? row_in_dispatch : params.rows - 1), params);
    const uint lane = thread_index % lanes_per_row;
    norm_in_registers<Formula, T, kWords, kVector>(
        tensors, params, lane, lanes_per_row,
        SimdgroupLanes{lane, thread_index % kSimdWidth - lane}, active);
  }
};

template <typename T, int kWords, bool kVector>
struct RowInRegisters {
  uint thread_index, threads;
  Threadgroup group;

  template <typename Formula>
  METAL_FUNC void run(Tensors<T> tensors, constant NormParams& params,
                      uint threadgroup_index) const {
    tensors.template move_to_row<Formula>(params.first_row + threadgroup_index, params);
    norm_in_registers<Formula, T, kWords, kVector>(tensors, params, thread_index, threads, group,
                                                   true);
  }
};

template <typename T, bool kVector>
struct LongRow {
  uint thread_index, threads;
  Threadgroup group;

  template <typename Formula>
  METAL_FUNC void run(Tensors<T> tensors, constant NormParams& params,
                      uint threadgroup_index) const {
    tensors.template move_to_row<Formula>(params.first_row + threadgroup_index, params);
    norm_in_memory<Formula, T, kVector>(tensors, params, thread_index, threads, group);
  }
};

// Threadgroups of segments follow one another.
template <typename Formula, int s = 0, bool kLast = s + 1 == int(SegmentOf<Formula, s>::kCount)>
struct Segments {
  template <typename Rows, typename T>
  static METAL_FUNC void run(Rows rows, Tensors<T> tensors, constant NormParams* segments,
                             uint threadgroup_index) {
    if (threadgroup_index < segments[s].threadgroups) {
      Segments<Formula, s, true>::run(rows, tensors, segments, threadgroup_index);
    } else {
      Segments<Formula, s + 1>::run(rows, tensors, segments,
                                    threadgroup_index - segments[s].threadgroups);
    }
  }
};
template <typename Formula, int s>
struct Segments<Formula, s, true> {
  template <typename Rows, typename T>
  static METAL_FUNC void run(Rows rows, Tensors<T> tensors, constant NormParams* segments,
                             uint threadgroup_index) {
    rows.template run<typename SegmentOf<Formula, s>::type>(tensors, segments[s],
                                                            threadgroup_index);
  }
};

template <typename Formula, typename T, int kWords, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void norm_simd(
    NORM_BUFFERS, uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]]) {
  NORM_TENSORS(tensors)
  const SimdRows<T, kWords, kVector> rows = {thread_index, threads};
  Segments<Formula>::run(rows, tensors, segments, threadgroup_index);
}

template <typename Formula, typename T, int kWords, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void norm_row(
    NORM_BUFFERS, uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[SegmentOf<Formula, 0>::type::kSums * kWords * kMaxSimdgroups];
  threadgroup uint4 firsts[kVector ? 1 : int(Threadgroup::kMostResults) * kWords * kMaxSimdgroups];
  NORM_TENSORS(tensors)
  const RowInRegisters<T, kWords, kVector> rows = {
      thread_index, threads, threadgroup_with(scratch, firsts, simdgroup, lane, simdgroups)};
  Segments<Formula>::run(rows, tensors, segments, threadgroup_index);
}

template <typename Formula, typename T, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void norm_loop(
    NORM_BUFFERS, uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[SegmentOf<Formula, 0>::type::kSums * kMaxSimdgroups];
  threadgroup uint4 firsts[1];
  NORM_TENSORS(tensors)
  const LongRow<T, kVector> rows = {thread_index, threads,
                                    threadgroup_with(scratch, firsts, simdgroup, lane, simdgroups)};
  Segments<Formula>::run(rows, tensors, segments, threadgroup_index);
}

// ---- names that the host looks up: op, kernel, words, dtype, access -----------------------------

#define INSTANTIATE(name, ...) \
  template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;

#define INSTANTIATE_ACCESS(op, x, T, access, kVector)                             \
  INSTANTIATE(#op "_simd_1_" x "_" access, norm_simd<formula::op, T, 1, kVector>) \
  INSTANTIATE(#op "_simd_2_" x "_" access, norm_simd<formula::op, T, 2, kVector>) \
  INSTANTIATE(#op "_row_1_" x "_" access, norm_row<formula::op, T, 1, kVector>)   \
  INSTANTIATE(#op "_row_2_" x "_" access, norm_row<formula::op, T, 2, kVector>)   \
  INSTANTIATE(#op "_row_4_" x "_" access, norm_row<formula::op, T, 4, kVector>)   \
  INSTANTIATE(#op "_loop_" x "_" access, norm_loop<formula::op, T, kVector>)

#define INSTANTIATE_TYPE(op, x, T)              \
  INSTANTIATE_ACCESS(op, x, T, "scalar", false) \
  INSTANTIATE_ACCESS(op, x, T, "vector", true)

// A metallib has all of them. To source that is compiled at run time the host adds the one line
// that instantiates the kernel it asks for (csrc/mps/plan.cpp).
#ifdef INSTANTIATE_AT_RUN_TIME
#define INSTANTIATE_KERNELS(op)
#else
#define INSTANTIATE_KERNELS(op)          \
  INSTANTIATE_TYPE(op, "float32", float) \
  INSTANTIATE_TYPE(op, "float16", half)  \
  INSTANTIATE_TYPE(op, "bfloat16", bfloat)
#endif
