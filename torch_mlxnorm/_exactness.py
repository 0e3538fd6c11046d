"""Which values a result may have, given the exact one.

`exact` is the float64 reference, `magnitude` what its summands add up to when none cancels: the
reference of the arguments' absolute values. Between the tensors' dtypes everything is float32, so a
value errs by a few units of float32 rounding of that magnitude. Rounding to the results' dtype is
monotonic: it is done to both ends of that interval. In 16 bits both ends are mostly one value, and
a last bit off is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torch_mlxnorm._roles import has_channels

# Relative to the magnitude, in half units in the last place of float32. On the CPU results err by
# up to 4, and 7 after two norms in a row; the exponential function of a GPU may add 8.
ARITHMETIC = 24 * 2.0**-24

# Where intermediate values are rounded to 16 bits, one may lie so close to the middle between two
# that float32 and float64 round it apart: seldom, and then it is off by a unit.
SELDOM = 0.01


@dataclass(frozen=True)
class Comparison:
    elements: int
    wrong: int
    largest_error: float  # in units of the magnitude; NaN where one is not a number
    where: str  # the first one that is wrong

    def __str__(self) -> str:
        return f"{self.wrong} of {self.elements} elements are wrong; {self.where}"


class Rounding(NamedTuple):
    """Of intermediate values."""

    dtype: torch.dtype
    units: int  # by which a result may be off


def rounds_between(
    operator: str, dtype: torch.dtype, options: dict[str, object]
) -> Rounding | None:
    """To the 16-bit dtype that an operator called so rounds to before the end, if it does. Of
    channels the norm is rounded, and a unit of it becomes one more in some of the steps after."""
    if dtype == torch.float32:
        return None
    if has_channels(operator):
        return Rounding(dtype, 4)
    llama = options.get("casting_mode") == "llama"
    return Rounding(dtype, 1) if llama or options.get("round_intermediates") else None


def compare(
    actual: Tensor, exact: Tensor, magnitude: Tensor, *, rounded: Rounding | None
) -> Comparison:
    """`rounded`: what intermediate values are rounded to, see `rounds_between`."""
    dtype, values = actual.dtype, actual.detach().cpu().double()
    if values.shape != exact.shape:
        raise AssertionError(f"shape {list(values.shape)} instead of {list(exact.shape)}")
    magnitude = torch.maximum(magnitude, exact.abs()).clamp(min=torch.finfo(dtype).tiny)

    def outside(slack: Tensor) -> Tensor:
        low, high = ((exact + sign * slack).to(dtype).double() for sign in (-1, 1))
        return ~((low <= values) & (values <= high))

    wrong = outside(ARITHMETIC * magnitude)
    if rounded is not None and wrong.double().mean() <= SELDOM:
        wrong = outside(rounded.units * torch.finfo(rounded.dtype).eps * magnitude)
    where = ""
    if wrong.any():
        index = tuple(wrong.nonzero()[0].tolist())
        where = f"at {list(index)} {values[index]:.9g} instead of {exact[index]:.9g}"
    error = ((values - exact).abs() / magnitude).max().item() if values.numel() else 0.0
    return Comparison(values.numel(), int(wrong.sum()), error, where)
