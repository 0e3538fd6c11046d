"""Rows of any length: the error does not grow with dim. Rows of one value show it best, since every
addition rounds the same way, and have results that do not depend on dim."""

from __future__ import annotations

import runpy
from pathlib import Path

import metal_sim
import pytest
import torch
from ops import Call, Op, each_op
from oracle import HALF_UNIT, INVERSE_RMS, Interval, assert_same_bits, assert_within
from tensors import DTYPES, type_id
from torch import Tensor

from torch_mlxnorm import RmsNormRecord, rms_norm

TESTS = Path(__file__).parent
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=type_id)

# Two roundings, of the inverse rms and of its product with x, and what is left of the sum's error.
MOST = 2 * HALF_UNIT
MOST_OF_METAL = 4 * HALF_UNIT  # 1 / dim and the mean are rounded, too, and the root is Metal's
ROWS = {
    "0.1": lambda dim: torch.full((1, dim), 0.1),
    "a third": lambda dim: torch.full((1, dim), 1 / 3),
    "ramp": lambda dim: torch.linspace(1 / dim, 1, dim).unsqueeze(0),
    "large, then small": lambda dim: torch.ones(1, dim).index_fill_(1, torch.arange(64), 4096.0),
}


def error(actual: Tensor, x: Tensor) -> float:
    """The largest, beside what float64 makes of x."""
    exact = x.double()
    exact = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + 1e-6)
    return (actual.cpu().double() / exact - 1).abs().max().item()


@pytest.mark.parametrize("dim", [4096, 4099, 53_248, 2**20, 2**24])
@pytest.mark.parametrize("row", ROWS)
def test_float32(device: str, row: str, dim: int) -> None:
    if device == "mps":
        dim = min(dim, 2**22)  # simulated in a second
    x = ROWS[row](dim)
    out = rms_norm(x.to(device), None)
    assert error(out, x) <= (MOST if device == "cpu" else MOST_OF_METAL)
    by_record = torch.empty_like(out)
    record = RmsNormRecord(torch.float32, 1, dim, has_weight=False, device=device)
    record(x.to(device), None, by_record)
    assert_same_bits(by_record, out)


def stretched(call: Call, dim: int) -> Call:
    """The only element of every row, dim times."""
    rows = call.op.named("input", "residual", "experts", "weight", "scale", "bias")
    return call.mapped(lambda t: t.expand(*t.shape[:-1], dim).contiguous(), rows)


@pytest.mark.parametrize("dim", [4096, 53_248, 2**20])
@each_dtype
@each_op
def test_both_sums(device: str, op: Op, dtype: torch.dtype, dim: int) -> None:
    for seed in range(3 if dim < 2**20 else 1):
        short = op.call((1,), 1, dtype, device, seed=seed)
        for out, bounds in zip(stretched(short, dim)(), short.bounds(), strict=True):
            first = out[:, :1]
            assert (out == first).all()
            assert_within(first, bounds)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=type_id)
def test_small_after_large(dtype: torch.dtype) -> None:
    """Where float32 has no bits left for ones, all of them together still count."""
    x = ROWS["large, then small"](2**24).to(dtype)
    exact = x.double() * (x.double().square().mean() + 1e-6).rsqrt()
    assert_within(rms_norm(x, None), Interval(exact, exact).widened(INVERSE_RMS))


# ---- Metal at its limit -------------------------------------------------------------------------


@each_dtype
def test_the_sum_of_a_thread_in_the_longest_row(simulated_mps: str, dtype: torch.dtype) -> None:
    """A row of 2^31 elements takes minutes to simulate; what is longer in it than in others is the
    sum that each of 1024 threads makes."""
    metal_sim.build_and_load(
        "metal_sim_selftest", [TESTS / "metal_sim" / "selftest" / "launcher.mm"]
    )
    flatten = runpy.run_path(str(TESTS.parent / "csrc/mps/embed_shaders.py"))["flatten"]
    values = torch.cat([torch.tensor([0.1, 1 / 3, 0.7]), torch.linspace(0.5, 2, 61)]).to(dtype)
    in_word = 16 // dtype.itemsize
    words = 2**31 // 1024 // in_word
    sums, naive = (torch.empty(64, device="mps") for _ in range(2))
    count = torch.tensor([words], dtype=torch.int32, device="mps")
    torch.ops.metal_selftest.dispatch(
        flatten(TESTS / "long_row.metal"),
        type_id(dtype),
        [values.float().to("mps"), count, sums, naive],
        [1, 1, 1],
        [64, 1, 1],
    )
    exact = values.double().square() * in_word * words

    def error(actual: Tensor) -> float:
        return (actual.cpu().double() / exact - 1).abs().max().item()

    assert error(naive) > 1000 * HALF_UNIT  # this test would notice
    assert error(sums) <= 4.5 * HALF_UNIT  # a word of up to 8 elements, and two roundings
