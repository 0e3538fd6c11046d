// What an op computes, row by row, written once for Metal and the CPU.
//
// A formula is a struct of static functions that are called for each piece of a row that a thread
// handles at once; shaders/piece.h and csrc/cpu/isa/piece.h have a Piece each. Its Values are
// float32, with +, -, *, /, exp_of_negative(x) and tanh(x). No base classes: Metal has none.
//
//   enum Tensor, Result         the op's tensors and results, in the order of its table (csrc/ops/)
//   first_sum(piece)            what the first sum of squares is over: input kFirst, or kComputed
//   second_sum(piece, x)        what the second one is over, if kSums is 2; x is what the first was
//   finish(piece, x)            the results, from what the last sum was over; everything that is
//                               written has been read before
//   rotate(piece, y, turned)    in ops that rotate pairs (y0, y1) of the one result of finish, for
//                               which kRotates is 1: the results, turned being (-y1, y0)
//
// or, in ops that are kSegments norms side by side, Segment<s>: the formula of each.
//
//   piece.input(t)              input t
//   piece.operand(t)            operand t: any type, one element or a row of them; piece.has(t)
//   piece.angles(t)             table t of the angles of the pairs at hand
//   piece.expert_sum(t, w)      the sum over experts k of w[k] * t[k], in their order
//   piece.rounded(x)            rounded as storing it in a tensor would, if round_intermediates
//   piece.rounded_as(t, x)      the same, as storing it in tensor t would
//   piece.divided(x)            by what is made of the last sum, where that is no inverse; and
//   piece.root_dim()            the square root of dim, in ops of channels
//   piece.number(n), choice(c)  the options, see ../abi.h
//   piece.kept()                what was worked out for rows that share it; piece.has_kept()
//
// and the steps below, which are made of these.
#pragma once

#include "../abi.h"

#ifndef __METAL_VERSION__
#define METAL_FUNC inline
#endif

namespace mlxnorm {

enum { kComputed = -1 };

template <typename Values, int n>
struct Results {
  Values values[n];
};

// Formula::kRotates, or 0.
template <typename Formula, typename = void>
struct Rotates {
  enum { value = 0 };
};
template <typename Formula>
struct Rotates<Formula, decltype(void(Formula::kRotates))> {
  enum { value = Formula::kRotates };
};

// The formula of segment s. Most ops are one, their own.
template <typename Formula, int s, typename = void>
struct SegmentOf {
  typedef Formula type;
  enum { kCount = 1 };
};
template <typename Formula, int s>
struct SegmentOf<Formula, s, decltype(void(Formula::kSegments))> {
  typedef typename Formula::template Segment<s> type;
  enum { kCount = Formula::kSegments };
};

// Formula::kFirstResult, or 0: results of a segment come after those of others.
template <typename Formula, typename = void>
struct FirstResult {
  enum { value = 0 };
};
template <typename Formula>
struct FirstResult<Formula, decltype(void(Formula::kFirstResult))> {
  enum { value = Formula::kFirstResult };
};

// N(x, weight): x / rms(x) * (weight + weight_offset), where x is what the last sum was over.
template <typename Piece, typename Values>
METAL_FUNC Values norm(Piece piece, Values x, int weight) {
  x = x * piece.statistic;
  if (!piece.has(weight)) {
    return x;
  }
  if (piece.choice(kCastingMode) == kLlama) {
    x = piece.as_stored(x);
  }
  return x * (piece.operand(weight) + piece.number(kWeightOffset));
}

// input + N(x, weight), as two steps.
template <typename Piece, typename Values>
METAL_FUNC Values plus_norm(Piece piece, int input, Values x, int weight) {
  return piece.rounded(piece.input(input) + piece.rounded(norm(piece, x, weight)));
}

// x * scale, or x when there is none.
template <typename Piece, typename Values>
METAL_FUNC Values scaled(Piece piece, Values x, int scale) {
  if (!piece.has(scale)) {
    return x;
  }
  return x * piece.operand(scale);
}

// x + shift, or x when there is none.
template <typename Piece, typename Values>
METAL_FUNC Values shifted(Piece piece, Values x, int shift) {
  if (!piece.has(shift)) {
    return x;
  }
  return x + piece.operand(shift);
}

// x * (offset + scale) + shift, as far as scale and shift are there.
template <typename Piece, typename Values>
METAL_FUNC Values modulated(Piece piece, Values x, int scale, int shift, Number offset) {
  if (!piece.has(scale) && !piece.has(shift)) {
    return x;
  }
  x = piece.rounded(x);
  if (piece.has(scale)) {
    const Values s = piece.operand(scale);
    const float o = piece.number(offset);
    switch (piece.choice(kModulation)) {
      case kSteps:
        x = piece.rounded(x * piece.rounded_as(scale, s + o));
        break;
      case kAddcmul:
        x = piece.rounded(x * o + x * s);
        break;
      default:  // kOnce
        x = x * (s + o);
    }
  }
  return shifted(piece, x, shift);
}

// y * cos + turned * sin
template <typename Piece, typename Values>
METAL_FUNC Values rotated(Piece piece, Values y, Values turned, int cos, int sin) {
  Values a = y * piece.angles(cos), b = turned * piece.angles(sin);
  if (piece.choice(kRopeRounding) != kRoundOnce) {
    a = piece.rounded(a);
  }
  if (piece.choice(kRopeRounding) == kRoundProducts) {
    b = piece.rounded(b);
  }
  return a + b;
}

// As torch.nn.functional has them, by way of sigmoid(x) = 1 / (1 + exp(-x)).
template <typename Values>
METAL_FUNC Values apply(uint32_t activation, Values x) {
  switch (activation) {
    case kSilu:
      return x / (exp_of_negative(x) + 1.0f);
    case kSigmoid:
      return 1.0f / (exp_of_negative(x) + 1.0f);
    case kGeluTanh:
      // (1 + tanh(u)) / 2 = sigmoid(2u), precise even where tanh(u) is close to -1;
      // 2u = 2 sqrt(2/pi) (x + 0.044715 x^3).
      return x / (exp_of_negative(x * (x * x * 0.07135481627260025f + 1.5957691216057308f)) + 1.0f);
    default:
      return x;
  }
}

// activation(operand)
template <typename Piece, typename Values = typename Piece::Values>
METAL_FUNC Values activated(Piece piece, int operand) {
  const uint32_t activation = piece.choice(kActivation);
  if (activation == kNoActivation) {
    return piece.operand(operand);
  }
  return piece.rounded_as(operand, apply(activation, piece.operand(operand)));
}

// gate_activation(gate), worked out once where rows share a gate and the device can keep it.
template <typename Piece, typename Values = typename Piece::Values>
METAL_FUNC Values activated_gate(Piece piece, int gate) {
  if (piece.has_kept()) {
    return piece.kept();
  }
  const Values g = piece.operand(gate);
  switch (piece.choice(kGateActivation)) {
    case kGateTanh:
      return piece.rounded_as(gate, tanh(g));
    case kGateSigmoid:
      return piece.rounded_as(gate, apply(kSigmoid, g));
    default:
      return g;
  }
}

// beta * residual + alpha * gate_activation(gate) * branch
template <typename Piece, typename Values>
METAL_FUNC Values gated_sum(Piece piece, int residual, Values branch, int gate) {
  const float alpha = piece.number(kAlpha), beta = piece.number(kBeta);
  Values r = piece.operand(residual);
  if (piece.has(gate)) {
    branch = piece.rounded(branch * activated_gate(piece, gate));
  }
  if (alpha != 1.0f) {
    branch = piece.rounded(branch * alpha);
  }
  if (beta != 1.0f) {
    r = piece.rounded_as(residual, r * beta);
  }
  return piece.rounded_as(residual, r + branch);
}

// x * activation(gate), where gate is an input: in float32, however intermediates are rounded.
template <typename Piece, typename Values>
METAL_FUNC Values gated(Piece piece, Values x, int gate) {
  return x * apply(piece.choice(kActivation), piece.input(gate));
}

}  // namespace mlxnorm
