// The kernels of ops that normalize channels which lie apart, as those of a contiguous [N, C, ...]
// do: a formula (formulas/) applied to the columns of its tensors.
//
// A column is a row whose elements, channels, are not neighbours in memory; columns that are form a
// line. A thread has a word of a line in some of the channels: an element of each of several
// columns. Threads of a SIMD group lie side by side along the line, `lanes_per_row` of them, and
// threads_per_column share a column.
//
// Two kernels by the number of channels, each with vector and scalar access:
//   norm_columns       a thread has its channels in registers: memory is read once
//   norm_long_columns  more than the registers hold: they are read again for the results
//
// A column is summed as a row is (reduce.h), whatever number of threads shares it: the words that
// its channels would be cut into as a row are summed one by one, then those of a chunk, then
// chunks.
#pragma once

#include "norm_kernels.h"

constant uint threads_per_column [[function_constant(kThreadsPerColumnConstant)]];

enum ColumnLimits {
  kMostColumnSimdgroups = kMaxColumnThreads / kSimdWidth,
  kLanesOfLongColumns = kMaxColumnThreads / kSimdWidth,
  kMostChunks = 8,          // of channels in registers
  kMostPartialSums = 2048,  // of all words and chunks that a threadgroup has
  kMostColumns = kSimdWidth * kWordBytes / 2,
  kFewRegisters = 512,  // threads that there could be
  kPlainChunks = 128,   // of long columns; a row of more is no longer held in registers, either
};

// A channel of a word of columns as formulas see it; formulas/formula.h says what each function
// gives.
template <typename T>
struct ColumnPiece {
  typedef ValuesOf<T> Values;

  thread const Tensors<T>* tensors;
  constant NormParams* params;
  uint channel;
  Values values, statistic;
  DivisorsOf<T> divisors;

  METAL_FUNC Values input(int /*t*/) const { return values; }
  METAL_FUNC bool has(int t) const { return tensor_type(tensor_types, t) != kAbsent; }
  METAL_FUNC Values operand(int t) const {
    return splat<T>(tensors->element(t, long(channel) * params->steps[t]));
  }
  METAL_FUNC Values divided(Values x) const { return divisors.divide(x, is_divisor_long()); }
  METAL_FUNC float root_dim() const { return params->root_dim; }
  METAL_FUNC float number(Number which) const { return params->numbers[which]; }
  METAL_FUNC uint choice(Choice which) const { return choice_in(choices, which); }
  METAL_FUNC Values as_stored(Values x) const { return x.template rounded_as<T>(); }
};

// A word of a line, in all channels.
template <typename Formula, typename T, bool kVector>
struct ColumnWord {
  enum { kPerWord = Element<T>::kPerWord };

  Tensors<T> tensors;  // from where words are counted
  constant NormParams* params;
  uint word, columns;  // of the line, from there on
  uint thread_in_simdgroup;

  METAL_FUNC uint lane() const { return thread_in_simdgroup % lanes_per_row; }

  METAL_FUNC bool is_there(uint channel) const {
    return word * kPerWord < columns && channel < params->dim;
  }

  METAL_FUNC uint4 load(uint channel) const {
    if (!is_there(channel)) {
      return uint4(0, 0, 0, 0);
    }
    device const T* line = tensors.input(Formula::kFirst);
    return Access<T, kVector>::load(line + long(channel) * params->steps[Formula::kFirst], word,
                                    columns);
  }

  METAL_FUNC ValuesOf<T> unpacked(uint4 loaded) const {
    ValuesOf<T> result;
    Element<T>::unpack(loaded, result.v);
    return result;
  }

  METAL_FUNC uint4 finished(uint channel, uint4 loaded, DivisorsOf<T> of_sums) const {
    ColumnPiece<T> piece;
    piece.tensors = &tensors;
    piece.params = params;
    piece.channel = min(channel, params->dim - 1);
    piece.values = unpacked(loaded);
    piece.statistic = of_sums.value;
    piece.divisors = of_sums;
    const ValuesOf<T> result = Formula::finish(piece, Formula::first_sum(piece)).values[0];
    return Element<T>::pack(result.v);
  }

  // All threads of a SIMD group come here: see Access::store_together.
  METAL_FUNC void store(uint channel, uint4 value) const {
    device T* line =
        static_cast<device T*>(tensors.results[0]) + long(channel) * params->result_step;
    if (kVector) {
      if (is_there(channel)) {
        Access<T, true>::store(line, word, columns, value);
      }
    } else {
      const uint4 next = from_lane(value, ushort((thread_in_simdgroup + 1) % kSimdWidth));
      if (is_there(channel)) {
        const Beside beside = {lane() > 0, lane() + 1 < lanes_per_row, next};
        const uint4 values[1] = {value};
        Access<T, false>::template store_together<1>(line, word, columns, values, beside);
      }
    }
  }
};

// The threadgroup's share of the lines: as many words as it has lanes.
template <typename Formula, typename T, bool kVector>
METAL_FUNC ColumnWord<Formula, T, kVector> column_word(Tensors<T> tensors,
                                                       constant NormParams& params,
                                                       uint threadgroup_index,
                                                       uint thread_in_simdgroup) {
  enum { kPerWord = Element<T>::kPerWord };
  const ulong share = params.first_row + threadgroup_index;
  const ulong width = lanes_per_row * kPerWord, shares = (params.line - 1) / width + 1;
  // A GPU has no 64-bit division.
  const ulong line =
      (share | shares) >> 32 == 0 ? ulong(uint(share) / uint(shares)) : share / shares;
  tensors.template move_to_row<Formula>(line, params);

  ColumnWord<Formula, T, kVector> result;
  // Words that do not begin on a boundary are cut out of two, of which one may be the neighbour's.
  const ulong begin = (share - line * shares) * width;
  const uint before = kVector || begin == 0 ? 0 : kPerWord;
  const ulong columns = params.line - begin + before;
  tensors.tensors[Formula::kFirst] = tensors.from(Formula::kFirst, begin - before);
  tensors.move_result(0, begin - before);
  result.tensors = tensors;
  result.params = &params;
  result.word = before / kPerWord + thread_in_simdgroup % lanes_per_row;
  result.columns = uint(min(columns, ulong(1) << 30));
  result.thread_in_simdgroup = thread_in_simdgroup;
  return result;
}

// ---- sums of columns ----------------------------------------------------------------------------

// The threads of a threadgroup, by what they share.
struct ColumnThreads {
  uint thread_index, threads, simdgroup, lane, simdgroups;

  // Of those that share a column; neighbours among them are in different SIMD groups, so that sums
  // are exchanged within one first.
  METAL_FUNC uint of_column() const { return lane / lanes_per_row * simdgroups + simdgroup; }

  // Over the threads of a SIMD group that share a column.
  template <typename T>
  METAL_FUNC ValuesOf<T> sum_in_simdgroup(ValuesOf<T> values) const {
#pragma unroll
    for (uint distance = kSimdWidth / 2; distance > 0; distance /= 2) {
      if (distance >= lanes_per_row) {
#pragma unroll
        for (int i = 0; i < Element<T>::kPerWord; ++i) {
          values.v[i] += simd_shuffle_xor(values.v[i], ushort(distance));
        }
      }
    }
    return values;
  }

  // Where the sum of the column at element i of a thread's word is found.
  METAL_FUNC uint column(int i) const { return i * lanes_per_row + lane % lanes_per_row; }

  template <typename T>
  METAL_FUNC void put(threadgroup float* partial, ValuesOf<T> values) const {
    const uint columns = lanes_per_row * Element<T>::kPerWord;
    if (lane < lanes_per_row) {
#pragma unroll
      for (int i = 0; i < Element<T>::kPerWord; ++i) {
        partial[simdgroup * columns + column(i)] = values.v[i];
      }
    }
  }

  template <typename T>
  METAL_FUNC DivisorsOf<T> get(threadgroup const Divisor* of_sums) const {
    DivisorsOf<T> result;
#pragma unroll
    for (int i = 0; i < Element<T>::kPerWord; ++i) {
      result.set(i, of_sums[column(i)]);
    }
    return result;
  }
};

// As a tree of halving distances.
template <int kCount>
METAL_FUNC float halving_sum(thread float* v) {
#pragma unroll
  for (int distance = kCount / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < distance; ++i) {
      v[i] += v[i + distance];
    }
  }
  return v[0];
}
template <int kMost>
METAL_FUNC float halving_sum(threadgroup const float* terms, uint count, uint step) {
  float v[kMost];
#pragma unroll
  for (uint i = 0; i < kMost; ++i) {
    v[i] = i < count ? terms[i * step] : 0.0f;
  }
  return halving_sum<kMost>(v);
}

// Of the words of a thread those of one chunk are summed into the first of it.
template <int kWords, typename T>
METAL_FUNC void sum_words_of_chunks(thread ValuesOf<T>* sums) {
  const uint words_of_chunk = kSimdWidth / threads_per_column;
#pragma unroll
  for (uint distance = kSimdWidth / 2; distance > 0; distance /= 2) {
    const uint apart = distance / threads_per_column;
#pragma unroll
    for (uint k = 0; k < kWords; ++k) {
      if (k % words_of_chunk < apart && k + apart < kWords) {
        sums[k] = sums[k] + sums[k + apart];
      }
    }
  }
}

// ---- kernels ------------------------------------------------------------------------------------

// 8 channels are a word or two of a row. The limit is more threads than there are: each gets
// registers for its channels as they are loaded, and not for twice as many that are unpacked.
template <typename Formula, typename T, int kOctets, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kFewRegisters)]] void norm_columns(
    NORM_BUFFERS, uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  enum { kPerWord = Element<T>::kPerWord, kWords = kOctets * 8 / int(kPerWord), kAtOnce = 4 };
  threadgroup float partial[kMostPartialSums];
  threadgroup Divisor totals[kMostColumns];
  NORM_TENSORS(tensors)
  constant NormParams& params = segments[0];
  const ColumnThreads group = {thread_index, threads, simdgroup, lane, simdgroups};
  const ColumnWord<Formula, T, kVector> word =
      column_word<Formula, T, kVector>(tensors, params, threadgroup_index, lane);

  uint4 kept[kWords * int(kPerWord)];
#pragma unroll
  for (uint k = 0; k < kWords; ++k) {
    const uint first = (group.of_column() + k * threads_per_column) * kPerWord;
#pragma unroll
    for (uint i = 0; i < kPerWord; ++i) {
      kept[k * kPerWord + i] = word.load(first + i);
    }
  }
  ValuesOf<T> sums[kWords];
#pragma unroll
  for (uint k = 0; k < kWords; ++k) {
    sums[k] = splat<T>(0.0f);
#pragma unroll
    for (uint i = 0; i < kPerWord; ++i) {
      sums[k] = plus_squares(sums[k], word.unpacked(kept[k * kPerWord + i]));
    }
  }

  sum_words_of_chunks<kWords>(sums);
  const uint words_of_chunk = kSimdWidth / threads_per_column;
  const uint chunks = (kWords - 1) / words_of_chunk + 1;
  const uint columns = lanes_per_row * kPerWord;
#pragma unroll
  for (uint k = 0; k < kWords; ++k) {
    if (k % words_of_chunk == 0) {
      group.put(partial + k / words_of_chunk * simdgroups * columns,
                group.sum_in_simdgroup(sums[k]));
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint column = thread_index; column < columns; column += threads) {
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      threadgroup float* terms = partial + chunk * simdgroups * columns + column;
      *terms = halving_sum<kMostColumnSimdgroups>(terms, simdgroups, columns);
    }
    const float sum = halving_sum<kMostChunks>(partial + column, chunks, simdgroups * columns);
    totals[column] = divisor(statistic<T>(sum, params), is_divisor_long());
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const DivisorsOf<T> of_sums = group.get<T>(totals);

  // Words take turns at the first registers: code for each of them would be more than caches hold.
#pragma unroll 1
  for (uint k = 0; k < kWords; ++k) {
    const uint first = (group.of_column() + k * threads_per_column) * kPerWord;
#pragma unroll
    for (uint i = 0; i < kPerWord; i += kAtOnce) {
      // All that formulas read of these channels, before the first of them is written.
#pragma unroll
      for (uint j = i; j < i + kAtOnce; ++j) {
        kept[j] = word.finished(first + j, kept[j], of_sums);
      }
#pragma unroll
      for (uint j = i; j < i + kAtOnce; ++j) {
        word.store(first + j, kept[j]);
      }
    }
#pragma unroll
    for (uint i = 0; i + kPerWord < kWords * kPerWord; ++i) {
      kept[i] = kept[i + kPerWord];
    }
  }
}

// A chunk of the channels after the other, each a word of every thread that shares a column.
template <typename Formula, typename T, bool kVector>
[[kernel, max_total_threads_per_threadgroup(kMaxColumnThreads)]] void norm_long_columns(
    NORM_BUFFERS, uint threadgroup_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  enum { kPerWord = Element<T>::kPerWord, kColumns = int(kLanesOfLongColumns) * int(kPerWord) };
  // Two that take turns, so that one may be written while the other is being summed.
  threadgroup float partial[2 * int(kMostColumnSimdgroups) * int(kColumns)];
  threadgroup float of_chunks[kSimdWidth * int(kColumns)];
  threadgroup float lost[kSimdWidth * int(kColumns)];
  threadgroup Divisor totals[kColumns];
  NORM_TENSORS(tensors)
  constant NormParams& params = segments[0];
  const ColumnThreads group = {thread_index, threads, simdgroup, lane, simdgroups};
  const ColumnWord<Formula, T, kVector> word =
      column_word<Formula, T, kVector>(tensors, params, threadgroup_index, lane);
  const uint chunks = (params.dim - 1) / (kSimdWidth * kPerWord) + 1;

  for (uint chunk = 0; chunk < chunks; ++chunk) {
    const uint first = (chunk * kSimdWidth + group.of_column()) * kPerWord;
    ValuesOf<T> sum = splat<T>(0.0f);
#pragma unroll
    for (uint i = 0; i < kPerWord; ++i) {
      sum = plus_squares(sum, word.unpacked(word.load(first + i)));
    }
    threadgroup float* turn = partial + chunk % 2 * simdgroups * kColumns;
    group.put(turn, group.sum_in_simdgroup(sum));
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index < kColumns) {  // each has a column, of which no other thread knows
      const uint place = chunk % kSimdWidth * kColumns + thread_index;
      CompensatedSum total = {0.0f, 0.0f};
      if (chunk >= kSimdWidth) {
        total.sum = of_chunks[place];
        total.lost = chunks > kPlainChunks ? lost[place] : 0.0f;
      }
      total.add(halving_sum<kMostColumnSimdgroups>(turn + thread_index, simdgroups, kColumns));
      of_chunks[place] = total.sum;
      lost[place] = total.lost;
    }
  }
  if (thread_index < kColumns) {
    const float sum =
        halving_sum<kSimdWidth>(of_chunks + thread_index, min(chunks, uint(kSimdWidth)), kColumns);
    totals[thread_index] = divisor(statistic<T>(sum, params), is_divisor_long());
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const DivisorsOf<T> of_sums = group.get<T>(totals);
  for (uint chunk = chunks; chunk > 0; --chunk) {  // what was read last is nearest
    const uint first = ((chunk - 1) * kSimdWidth + group.of_column()) * kPerWord;
    uint4 results[kPerWord];
#pragma unroll
    for (uint i = 0; i < kPerWord; ++i) {
      results[i] = word.finished(first + i, word.load(first + i), of_sums);
    }
#pragma unroll
    for (uint i = 0; i < kPerWord; ++i) {
      word.store(first + i, results[i]);
    }
  }
}

// ---- names that the host looks up: op, kernel, octets, dtype, access ----------------------------

#define INSTANTIATE_COLUMN_ACCESS(op, x, T, access, kVector)                            \
  INSTANTIATE(#op "_columns_1_" x "_" access, norm_columns<formula::op, T, 1, kVector>) \
  INSTANTIATE(#op "_columns_2_" x "_" access, norm_columns<formula::op, T, 2, kVector>) \
  INSTANTIATE(#op "_columns_3_" x "_" access, norm_columns<formula::op, T, 3, kVector>) \
  INSTANTIATE(#op "_columns_4_" x "_" access, norm_columns<formula::op, T, 4, kVector>) \
  INSTANTIATE(#op "_long_columns_" x "_" access, norm_long_columns<formula::op, T, kVector>)

#define INSTANTIATE_COLUMN_TYPE(op, x, T)              \
  INSTANTIATE_COLUMN_ACCESS(op, x, T, "scalar", false) \
  INSTANTIATE_COLUMN_ACCESS(op, x, T, "vector", true)

#ifdef INSTANTIATE_AT_RUN_TIME
#define INSTANTIATE_COLUMN_KERNELS(op)
#else
#define INSTANTIATE_COLUMN_KERNELS(op)          \
  INSTANTIATE_COLUMN_TYPE(op, "float32", float) \
  INSTANTIATE_COLUMN_TYPE(op, "float16", half)  \
  INSTANTIATE_COLUMN_TYPE(op, "bfloat16", bfloat)
#endif
