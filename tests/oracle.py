"""Comparing results: with what float32 arithmetic may make of float64 values, and bit by bit."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def different_bits(actual: Tensor, expected: Tensor) -> Tensor:
    """Where two tensors differ in a bit. Any NaN equals any other."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    integer = {4: torch.int32, 2: torch.int16}[actual.element_size()]
    difference = actual.contiguous().view(integer) != expected.contiguous().view(integer)
    return difference & ~(actual.isnan() & expected.isnan())


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    difference = different_bits(actual, expected)
    assert not difference.any(), f"{int(difference.sum())} of {difference.numel()} elements differ"


# ---- what float32 arithmetic may give -----------------------------------------------------------

# Relative errors that the intervals leave room for, in half units in the last place.
HALF_UNIT = 2.0**-24
# Metal's exp and tanh with safe math: four and five units in the last place.
EXP, TANH = 8 * HALF_UNIT, 10 * HALF_UNIT
# Five operations lead to the argument that gelu_tanh gives to exp.
GELU_ARGUMENT = 5 * HALF_UNIT


# Of an inverse rms: a sum of squares, then a mean, a sum, a square root and a reciprocal, and on
# MPS a rounded 1 / dim. However long a row is, an element goes through at most 22 additions in
# float32: on the CPU 16 in a run (4 if activations are float32) and 6 that fold it, before runs are
# added in float64; on MPS 8 in a word, 4 of words (or a compensated sum, which errs as 2 do) and 10
# that fold threads. Each rounds by a half unit and the root halves them all: 11, and 3 for the
# rest, if all went one way. They do not: kernels were seen to err by 3, most of it in the rows of
# one value of test_long_rows.py.
INVERSE_RMS = 8 * HALF_UNIT

FLOAT32_MAX = torch.finfo(torch.float32).max


def _as_float32(t: Tensor) -> Tensor:
    return t.float().double()


def _hull(corners: Iterable[Tensor]) -> Interval:
    """Of what float32 makes of the corners: an operation rounds its result, or does not where it is
    fused with the next one."""
    candidates = [t for corner in corners for t in (corner, _as_float32(corner))]
    low = functools.reduce(torch.minimum, candidates)
    return Interval(low, functools.reduce(torch.maximum, candidates))


@dataclass(frozen=True)
class Interval:
    """Float64 bounds, element by element, of what float32 kernels may compute.

    An interval holds the exact value as well. Rounding to a dtype is monotonic, so it is done to
    the bounds: where both become one value, that value alone is allowed. So errors are followed
    through rounding, sums that cancel and second norms, without a tolerance anywhere besides those
    above.
    """

    low: Tensor
    high: Tensor

    @staticmethod
    def of(t: Tensor) -> Interval:
        exact = t.detach().cpu().double()
        return Interval(exact, exact)

    @staticmethod
    def of_number(value: float) -> Interval:
        """That float32 may round."""
        exact = torch.tensor([value], dtype=torch.float64)
        return _hull([exact])

    def __add__(self, other: Interval | float) -> Interval:
        low, high = (other.low, other.high) if isinstance(other, Interval) else (other, other)
        return _hull([self.low + low, self.high + high])

    def __mul__(self, other: Interval) -> Interval:
        return _hull(a * b for a in self._ends for b in other._ends)

    def __getitem__(self, index: object) -> Interval:
        return Interval(self.low[index], self.high[index])

    @staticmethod
    def cat(parts: Sequence[Interval]) -> Interval:
        """Along the last dimension."""
        return Interval(
            torch.cat([part.low for part in parts], -1),
            torch.cat([part.high for part in parts], -1),
        )

    def __truediv__(self, positive: Interval) -> Interval:
        return _hull(a / b for a in self._ends for b in positive._ends)

    @property
    def _ends(self) -> list[Tensor]:
        return [self.low] if self.low is self.high else [self.low, self.high]

    def rounded(self, dtype: torch.dtype) -> Interval:
        return Interval(self.low.to(dtype).double(), self.high.to(dtype).double())

    def widened(self, relative: float) -> Interval:
        return Interval(
            self.low * (1 - relative * self.low.sign()),
            self.high * (1 + relative * self.high.sign()),
        )

    def inverse_rms(self, eps: float) -> Interval:
        """`rsqrt(mean(x**2, last dim) + eps)`."""
        most, least = self._sums_of_squares(*self._squares())
        low, high = (torch.rsqrt(s / self.low.shape[-1] + eps) for s in (most, least))
        return Interval(low, high).widened(INVERSE_RMS)

    def norm(self) -> Interval:
        """`sqrt(sum(x**2, last dim))`."""
        most, least = self._sums_of_squares(*self._squares())
        return Interval(least.sqrt(), most.sqrt()).widened(INVERSE_RMS)

    def mean_square(self, rounded: torch.dtype) -> Interval:
        """`mean(x**2, last dim)`, of squares that are rounded."""
        squares = self._squares()
        most, least = self._sums_of_squares(*(t.to(rounded).double() for t in squares))
        dim = self.low.shape[-1]
        return Interval(least / dim, most / dim).widened(2 * INVERSE_RMS)

    def sqrt(self) -> Interval:
        return _hull([self.low.sqrt(), self.high.sqrt()])

    def at_least(self, least: float) -> Interval:
        ends = Interval.of_number(least)
        return Interval(self.low.clamp_min(ends.low), self.high.clamp_min(ends.high))

    @staticmethod
    def _sums_of_squares(largest: Tensor, smallest: Tensor) -> tuple[Tensor, Tensor]:
        """At most, at least."""
        most, least = (t.sum(dim=-1, keepdim=True) for t in (largest, smallest))
        # Past the end of float32 a square overflows; a sum of them may, unless float64 adds them.
        most = torch.where(most * (1 + 2 * INVERSE_RMS) > FLOAT32_MAX, torch.inf, most)
        square = smallest.amax(dim=-1, keepdim=True)
        least = torch.where(square * (1 - 2 * INVERSE_RMS) > FLOAT32_MAX, torch.inf, least)
        most, least = (torch.where(s > FLOAT32_MAX, s, _as_float32(s)) for s in (most, least))
        return most, least

    def overflows_when_squared(self) -> Tensor:
        """Rows whose squares float32 cannot sum, and float64 can: infinity may be divided by."""
        most, least = (t.sum(dim=-1, keepdim=True) for t in self._squares())
        return (most > FLOAT32_MAX * (1 - 2.0**-10)) & least.isfinite()

    def _squares(self) -> tuple[Tensor, Tensor]:
        """At most, at least."""
        a, b = self.low.abs(), self.high.abs()
        spans_zero = (self.low <= 0) & (self.high >= 0)
        smallest = torch.where(spans_zero, 0.0, torch.minimum(a, b))
        return torch.maximum(a, b).square(), smallest.square()

    def exp_of_negative(self) -> Interval:
        bounds = Interval(torch.exp(-self.high), torch.exp(-self.low)).widened(EXP)
        return _hull([bounds.low, bounds.high])

    def tanh(self) -> Interval:
        bounds = Interval(torch.tanh(self.low), torch.tanh(self.high)).widened(TANH)
        return _hull([bounds.low, bounds.high])


def assert_within(
    actual: Tensor, bounds: Interval, name: str = "result", overflowed: Tensor | None = None
) -> None:
    """Every element of `actual` is one that the interval, rounded to its dtype, holds. In rows that
    overflow on some devices only, NaN in the interval stands for anything."""
    assert actual.shape == bounds.low.shape
    rounded = bounds.rounded(actual.dtype)
    values = actual.detach().cpu().double()
    inside = (rounded.low <= values) & (values <= rounded.high)
    inside |= values.isnan() & rounded.low.isnan() & rounded.high.isnan()
    if overflowed is not None:
        inside |= overflowed & rounded.low.isnan()
    if not inside.all():
        where = tuple((~inside).nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: {int((~inside).sum())} of {inside.numel()} elements are off; at {where} "
            f"[{rounded.low[where]:.9g}, {rounded.high[where]:.9g}] allows no {values[where]:.9g}"
        )
