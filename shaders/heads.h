// The heads of a row whose pairs are rotated.
#pragma once

#include "piece.h"

constant bool holds_pairs [[function_constant(kHoldsPairsConstant)]];

// Where pairs are rotated, a row is finished in parts of its heads: two halves or all of what is
// rotated, and what passes through. A thread that does not have both elements of its pairs gets a
// word of each part, which it reads again and overwrites: no other thread does, once the sum is
// known.
template <typename Formula, int kRotates = Rotates<Formula>::value>
struct Heads {
  template <int kWords, typename Piece, typename Values>
  static METAL_FUNC void store(thread const Piece* /*pieces*/, thread const Values* /*values*/,
                               uint /*begin*/, uint /*step*/) {}
  template <typename Piece>
  static METAL_FUNC void store_from_memory(Piece /*piece*/, uint /*begin*/, uint /*step*/) {}
};
template <typename Formula>
struct Heads<Formula, 1> {
  template <int kWords, typename Piece, typename Values>
  static METAL_FUNC void store(thread const Piece* pieces, thread const Values* values, uint begin,
                               uint step) {
    constant NormParams& params = *pieces[0].params;
    if (!holds_pairs) {
      store_from_memory(pieces[0], begin, step);
      return;
    }
    const bool interleaved = pieces[0].choice(kInterleaved) != 0;
    enum { kHalf = kWords / 2 };
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      if (!pieces[k].is_there()) {
        continue;
      }
      if (params.rotated == 0) {
        pieces[k].store(Formula::finish(pieces[k], values[k]));
      } else if (interleaved) {
        rotate_neighbours(pieces[k], Formula::finish(pieces[k], values[k]).values[0]);
      } else if (k < kHalf) {
        const Values y0 = Formula::finish(pieces[k], values[k]).values[0];
        const Values y1 = Formula::finish(pieces[k + kHalf], values[k + kHalf]).values[0];
        const uint half_row = params.rotated / 2;
        rotate_halves(pieces[k].part(0, half_row), pieces[k].part(half_row, half_row), y0, y1);
      }
    }
  }

  // The words with these numbers, of all heads.
  template <typename Piece>
  static METAL_FUNC void store_from_memory(Piece piece, uint begin, uint step) {
    constant NormParams& params = *piece.params;
    const uint dim = params.dim / params.heads, rotated = params.rotated;
    const bool interleaved = piece.choice(kInterleaved) != 0;
    const uint words =
        max(words_of<Piece>(interleaved ? rotated : rotated / 2), words_of<Piece>(dim - rotated));
    for (uint word = begin; word < params.heads * words; word += step) {
      Piece here = piece;
      here.word = word;
      auto tensors = *piece.tensors;
      here = in_its_head(here, tensors, words);
      if (interleaved) {
        const Piece all = here.part(0, rotated);
        if (all.is_there()) {
          store_neighbours(all, finished(all).values[0]);
        }
      } else {
        const Piece first = here.part(0, rotated / 2), second = here.part(rotated / 2, rotated / 2);
        if (first.is_there()) {
          rotate_halves(first, second, finished(first).values[0], finished(second).values[0]);
        }
      }
      const Piece rest = here.part(rotated, dim - rotated);
      if (rest.is_there()) {
        rest.store(finished(rest));
      }
    }
  }

 private:
  template <typename Piece>
  static METAL_FUNC uint words_of(uint elements) {
    return (elements + Piece::kElements - 1) / Piece::kElements;
  }

  // A word of a row as a word of its head, each of which has so many. `tensors` are copies.
  template <typename Piece, typename Tensors>
  static METAL_FUNC Piece in_its_head(Piece piece, thread Tensors& tensors, uint words) {
    if (piece.choice(kAcrossHeads) != 0) {
      const uint head = piece.word / words;
      tensors.template move_to_head<Formula>(head, *piece.params);
      piece.tensors = &tensors;
      piece.word -= head * words;
    }
    return piece;
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, 1> finished(Piece piece) {
    return Formula::finish(piece, Formula::first_sum(piece));
  }

  template <typename Piece, typename Values>
  static METAL_FUNC void rotate_neighbours(Piece piece, Values y) {
    auto tensors = *piece.tensors;
    constant NormParams& params = *piece.params;
    const uint dim = params.dim / params.heads;
    store_neighbours(in_its_head(piece, tensors, words_of<Piece>(dim)).part(0, dim), y);
  }

  template <typename Piece, typename Values>
  static METAL_FUNC void store_neighbours(Piece piece, Values y) {
    piece.store(Formula::rotate(piece, y, quarter_turn(y)));
  }

  template <typename Piece, typename Values>
  static METAL_FUNC void rotate_halves(Piece first, Piece second, Values y0, Values y1) {
    first.store(Formula::rotate(first, y0, -y1));
    second.store(Formula::rotate(second, y1, y0));
  }
};
