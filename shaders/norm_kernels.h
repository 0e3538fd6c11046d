// The kernels of every op: a formula (formulas/) applied to the rows of its tensors.
//
// Three of them by length of the row, each with vector and scalar access:
//   norm_simd  up to 64 words: a few lanes of a SIMD group share a row, no barrier
//   norm_row   a threadgroup has the row in its registers: memory is read once
//   norm_loop  longer than the registers hold: memory is read again for every sum and the results
#pragma once

#include "heads.h"
#include "reduce.h"

constant uint lanes_per_row [[function_constant(kLanesPerRowConstant)]];

// ---- sums over the threads that share a row ---------------------------------------------------

struct SimdgroupLanes {
  METAL_FUNC float sum(float v, int /*which*/) const { return lanes_sum(v, lanes_per_row); }
};

// Sums have scratch of their own: see threadgroup_sum.
struct Threadgroup {
  threadgroup float* scratch;
  uint simdgroup, lane, simdgroups;

  METAL_FUNC float sum(float v, int which) const {
    return threadgroup_sum(v, scratch + which * kMaxSimdgroups, simdgroup, lane, simdgroups);
  }
};

METAL_FUNC Threadgroup threadgroup_with(threadgroup float* scratch, uint simdgroup, uint lane,
                                        uint simdgroups) {
  Threadgroup result;
  result.scratch = scratch;
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

// Of words begin, begin + step, … kWords of them are this thread's. `writes`: it is not just there
// to complete a SIMD group.
template <typename Formula, typename T, int kWords, bool kVector, typename Threads>
METAL_FUNC void norm_in_registers(thread const Tensors<T>& tensors, constant NormParams& params,
                                  uint begin, uint step, Threads threads, bool writes) {
  Prefetched<Formula, T, kVector> prefetched[kWords];
  Piece<Formula, T, kVector> pieces[kWords];
  bool holds[kWords];
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    const uint word = begin + k * step;
    holds[k] = word * Element<T>::kPerWord < params.dim;
    pieces[k] = piece_at(tensors, prefetched[k], params, word);
    if (prefetched_tensors != 0 && holds[k]) {
      prefetched[k].load(tensors, word, params.dim);
    }
  }

  ValuesOf<T> values[kWords];
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    values[k] = holds[k] ? Formula::first_sum(pieces[k]) : splat<T>(0.0f);
    sum += sum_of_squares(values[k]);
  }
  float inverse = inverse_rms(threads.sum(sum, 0), params.inverse_dim, params.eps);

  if (Formula::kSums == 2) {
    sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      if (holds[k]) {
        pieces[k].inverse_rms = inverse;
        values[k] = SecondSum<Formula>::values(pieces[k], values[k]);
      }
      sum += sum_of_squares(values[k]);
    }
    inverse = inverse_rms(threads.sum(sum, 1), params.inverse_dim, params.eps);
  }

  if (Rotates<Formula>::value) {
    if (writes) {
      pieces[0].inverse_rms = inverse;
      Heads<Formula>::store(pieces[0], begin, step);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    if (holds[k] && writes) {
      pieces[k].inverse_rms = inverse;
      pieces[k].store(Formula::finish(pieces[k], values[k]));
    }
  }
}

// Words thread, thread + threads, … of the row are this thread's, however many.
template <typename Formula, typename T, bool kVector>
METAL_FUNC void norm_in_memory(thread const Tensors<T>& tensors, constant NormParams& params,
                               uint thread_index, uint thread_count, Threadgroup threads) {
  const uint words = (params.dim - 1) / Element<T>::kPerWord + 1;
  Prefetched<Formula, T, kVector> nothing;
  Piece<Formula, T, kVector> piece = piece_at(tensors, nothing, params, 0);

  CompensatedSum first = {0.0f, 0.0f};
  for (piece.word = thread_index; piece.word < words; piece.word += thread_count) {
    first.add(sum_of_squares(Formula::first_sum(piece)));
  }
  const float inverse = inverse_rms(threads.sum(first.sum, 0), params.inverse_dim, params.eps);

  float last_inverse = inverse;
  if (Formula::kSums == 2) {
    piece.inverse_rms = inverse;
    CompensatedSum second = {0.0f, 0.0f};
    for (piece.word = thread_index; piece.word < words; piece.word += thread_count) {
      second.add(sum_of_squares(SecondSum<Formula>::values(piece, Formula::first_sum(piece))));
    }
    last_inverse = inverse_rms(threads.sum(second.sum, 1), params.inverse_dim, params.eps);
  }

  if (Rotates<Formula>::value) {
    piece.inverse_rms = last_inverse;
    Heads<Formula>::store(piece, thread_index, thread_count);
    return;
  }
  for (piece.word = thread_index; piece.word < words; piece.word += thread_count) {
    ValuesOf<T> values = Formula::first_sum(piece);
    if (Formula::kSums == 2) {
      piece.inverse_rms = inverse;
      values = SecondSum<Formula>::values(piece, values);
    }
    piece.inverse_rms = last_inverse;
    piece.store(Formula::finish(piece, values));
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
    norm_in_registers<Formula, T, kWords, kVector>(tensors, params, thread_index % lanes_per_row,
                                                   lanes_per_row, SimdgroupLanes(), active);
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
struct RowInMemory {
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
  threadgroup float scratch[SegmentOf<Formula, 0>::type::kSums * kMaxSimdgroups];
  NORM_TENSORS(tensors)
  const RowInRegisters<T, kWords, kVector> rows = {
      thread_index, threads, threadgroup_with(scratch, simdgroup, lane, simdgroups)};
  Segments<Formula>::run(rows, tensors, segments, threadgroup_index);
}

template <typename Formula, typename T, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxThreads)]] void norm_loop(
    NORM_BUFFERS, uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[SegmentOf<Formula, 0>::type::kSums * kMaxSimdgroups];
  NORM_TENSORS(tensors)
  const RowInMemory<T, kVector> rows = {thread_index, threads,
                                        threadgroup_with(scratch, simdgroup, lane, simdgroups)};
  Segments<Formula>::run(rows, tensors, segments, threadgroup_index);
}

// ---- names that the host looks up: op, kernel, words, dtype, access -----------------------------

#define INSTANTIATE(name, ...) \
  template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;

#define INSTANTIATE_ACCESS(op, x, T, access, kVector)                             \
  INSTANTIATE(#op "_simd_2_" x "_" access, norm_simd<formula::op, T, 2, kVector>) \
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
