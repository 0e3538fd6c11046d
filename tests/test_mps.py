"""What holds for the MPS host code and its kernels alone, seen through the Metal simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import metal_sim
import pytest
import torch
from oracle import assert_same_bits
from test_rms_norm import TYPES, randn, type_id

from torch_mlxnorm import rms_norm

pytestmark = pytest.mark.usefixtures("simulated_mps")


@pytest.mark.parametrize("access", ["vector", "scalar"])
@pytest.mark.parametrize(
    "elements", [24, 128, 2816, 32768, 40000], ids=lambda n: f"{n * 2}_bytes_as_float16"
)
@pytest.mark.parametrize(("dtype", "weight_dtype"), TYPES, ids=type_id)
def test_thread_order_does_not_change_a_bit(
    dtype: torch.dtype, weight_dtype: torch.dtype, elements: int, access: str
) -> None:
    """Every kernel, with threads run forward, reversed and shuffled."""
    dim = elements if dtype != torch.float32 else elements // 2
    shift = 0 if access == "vector" else 1
    storage = randn(3 * dim + shift, dtype=dtype, device="mps")
    x = storage[shift:].view(3, dim)
    weight = randn(dim, dtype=weight_dtype, device="mps", seed=1)
    options = {"casting_mode": "llama", "weight_offset": 1.0}
    result = metal_sim.assert_order_independent(
        lambda: (rms_norm(x, weight), rms_norm(x, None), rms_norm(x, weight, **options)), shuffles=1
    )
    assert_same_bits(result[0], rms_norm(x, weight))


def test_encodes_one_dispatch_and_nothing_else() -> None:
    qkv = randn(6, 192, dtype=torch.float16, device="mps")
    heads = qkv[:, 64:128].view(6, 4, 16).transpose(0, 1)
    weight = randn(16, dtype=torch.float32, device="mps")
    rms_norm(heads, weight)
    torch.mps.synchronize()

    metal_sim.reset_stats()
    out = rms_norm(heads, weight)
    rms_norm(heads, weight, out=out)
    stats = metal_sim.stats()
    assert stats["dispatches"] == 2
    for nothing in ("commits", "outside_commits", "synchronizations", "copies", "cpu_fallbacks"):
        assert stats[nothing] == 0, nothing
    assert stats["buffers"] == 1  # out
    for cached in ("libraries", "functions", "pipelines"):
        assert stats[cached] == 0, cached


def test_a_row_that_the_kernels_cannot_count_is_an_error() -> None:
    x = torch.empty(2**31 + 1, dtype=torch.float16, device="mps")  # lazily mapped
    metal_sim.reset_stats()
    expected = "x must have a last dimension of at most 2147483648 on mps:0, got 2147483649"
    with pytest.raises(RuntimeError, match=f"mlxnorm::rms_norm: {expected}"):
        rms_norm(x, None)
    with pytest.raises(RuntimeError, match=expected):
        rms_norm(x, None, out=x)
    assert metal_sim.stats()["buffers"] == metal_sim.stats()["dispatches"] == 0


def test_no_rows_encode_nothing() -> None:
    metal_sim.reset_stats()
    rms_norm(torch.empty(0, 64, device="mps"), None)
    assert metal_sim.stats()["dispatches"] == 0


def test_libraries_keep_nan() -> None:
    """Fast math would let the compiler assume that there is none."""
    rms_norm(torch.ones(2, 64, device="mps"), None)
    assert metal_sim.stats()["fast_math_libraries"] == 0


def test_pipelines_are_made_once() -> None:
    """One for each kernel, dtypes and options; rows, eps and weight_offset do not ask for more."""
    x = randn(40, 1000, dtype=torch.bfloat16, device="mps")
    weight = randn(1000, dtype=torch.bfloat16, device="mps")
    for options in ({}, {"casting_mode": "llama"}):
        rms_norm(x[:1], weight, **options)
        rms_norm(x, weight, **options)
        rms_norm(x, None, **options)
        metal_sim.reset_stats()
        rms_norm(x[:7], weight, 1e-5, **options)
        rms_norm(x[2:], weight, weight_offset=1.0, **options)
        rms_norm(x[3:], None, 1e-5, **options)
        assert metal_sim.stats()["pipelines"] == 0
    rms_norm(x.float(), None, 1e-3)
    assert metal_sim.stats()["pipelines"] <= 1


def test_no_object_is_leaked() -> None:
    x = randn(4, 256, dtype=torch.float32, device="mps")
    strided = randn(256, 4, dtype=torch.float32, device="mps").t()

    def live_after_calls() -> dict[str, int]:
        for _ in range(5):
            rms_norm(x, None)
            rms_norm(strided, None)
        torch.mps.synchronize()
        return metal_sim.live_objects()

    assert live_after_calls() == live_after_calls()


KERNEL_CHOICE = """
import torch, metal_sim
metal_sim.enable()
from torch_mlxnorm import rms_norm
x = torch.arange(200.0).view(2, 100).to("mps")
print(rms_norm(x, None).cpu().view(torch.int32).sum().item())
print(rms_norm(x[:, 1:], None).shape)
"""


@pytest.mark.parametrize(
    ("choice", "error"),
    [
        ("scalar", None),
        ("vector", "TORCH_MLXNORM_KERNEL=vector needs rows of a multiple of 16 bytes"),
        ("fast", 'TORCH_MLXNORM_KERNEL must be "scalar", "vector" or unset, got "fast"'),
    ],
)
def test_kernel_choice_of_the_environment(choice: str, error: str | None) -> None:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"TORCH_MLXNORM_KERNEL": choice, "PYTHONPATH": ":".join(paths)}
    run = subprocess.run(
        [sys.executable, "-c", KERNEL_CHOICE], env=environment, capture_output=True, text=True
    )
    if error is None:
        assert run.returncode == 0, run.stderr
    else:
        assert f"ValueError: {error}" in run.stderr
    if choice != "fast":
        x = torch.arange(200.0).view(2, 100).to("mps")
        expected = rms_norm(x, None).cpu().view(torch.int32).sum().item()
        assert run.stdout.splitlines()[0] == str(expected)
