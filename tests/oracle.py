"""Comparing results with the float64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

# Half a unit in the last place, relative to the value: what one rounding may cost.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Below this, float16 and bfloat16 are spaced evenly (subnormals).
SMALLEST_STEP = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
# Of the float32 arithmetic: sums over a tree, a square root, a division and three products.
FLOAT32_ARITHMETIC = 8 * 2.0**-24


def assert_matches(actual: Tensor, expected: Tensor, *, roundings: int = 1) -> None:
    """`actual` is the float64 `expected` after `roundings` roundings to its dtype, give or take
    the error of float32 arithmetic."""
    assert actual.shape == expected.shape
    relative = roundings * ROUNDING[actual.dtype] + FLOAT32_ARITHMETIC
    bound = relative * expected.abs() + SMALLEST_STEP[actual.dtype]
    error = (actual.cpu().double() - expected).abs()
    worst = (error / bound).max().item() if error.numel() else 0.0
    assert worst <= 1.0, f"error is {worst:.2f} times what {actual.dtype} allows"


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    integer = {4: torch.int32, 2: torch.int16}[actual.element_size()]
    difference = actual.cpu().contiguous().view(integer) != expected.cpu().contiguous().view(
        integer
    )
    assert not difference.any(), f"{int(difference.sum())} of {difference.numel()} elements differ"
