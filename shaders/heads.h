// The heads of a row whose pairs are rotated.
#pragma once

#include "piece.h"

// Where pairs are rotated, a row is finished in parts of its heads: two halves or all of what is
// rotated, and what passes through. A thread has a word of each part, which it reads again and
// overwrites: no other thread does, once the sum is known.
template <typename Formula, int kRotates = Rotates<Formula>::value>
struct Heads {
  template <typename Piece>
  static METAL_FUNC void store(Piece /*piece*/, uint /*begin*/, uint /*step*/) {}
};
template <typename Formula>
struct Heads<Formula, 1> {
  // The words with these numbers, of all heads.
  template <typename Piece>
  static METAL_FUNC void store(Piece piece, uint begin, uint step) {
    constant NormParams& params = *piece.params;
    const uint dim = params.dim / params.heads, rotated = params.rotated;
    const bool interleaved = piece.choice(kInterleaved) != 0;
    const uint words =
        max(words_of<Piece>(interleaved ? rotated : rotated / 2), words_of<Piece>(dim - rotated));
    for (uint word = begin; word < params.heads * words; word += step) {
      Piece here = piece;
      here.word = word;
      auto tensors = *piece.tensors;
      if (piece.choice(kAcrossHeads) != 0) {
        const uint head = word / words;
        tensors.template move_to_head<Formula>(head, params);
        here.tensors = &tensors;
        here.word = word - head * words;
      }
      if (interleaved) {
        rotate_neighbours(here.part(0, rotated));
      } else {
        rotate_halves(here.part(0, rotated / 2), here.part(rotated / 2, rotated / 2));
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

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC Results<Values, 1> finished(Piece piece) {
    return Formula::finish(piece, Formula::first_sum(piece));
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC void rotate_neighbours(Piece piece) {
    if (piece.is_there()) {
      const Values y = finished(piece).values[0];
      piece.store(Formula::rotate(piece, y, quarter_turn(y)));
    }
  }

  template <typename Piece, typename Values = typename Piece::Values>
  static METAL_FUNC void rotate_halves(Piece first, Piece second) {
    if (first.is_there()) {
      const Values y0 = finished(first).values[0], y1 = finished(second).values[0];
      first.store(Formula::rotate(first, y0, -y1));
      second.store(Formula::rotate(second, y1, y0));
    }
  }
};
