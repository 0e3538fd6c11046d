"""A slice of `make stress`, and that it finds what is planted."""

from __future__ import annotations

import time

import pytest
import stress
import torch
from tensors import DTYPES

import torch_mlxnorm


def slice_of(device: str, calls: int = 100) -> stress.Report:
    return stress.run(device, 8, calls, stress.jobs(device, 40), rounds=4)


def test_a_slice_of_the_stress_test(device: str) -> None:
    report = slice_of(device)
    assert report.calls == 800 and not report.problems, report


def test_each_call_runs() -> None:
    """Of as many as `make stress` has; on the CPU, where that takes no time."""
    for job in stress.jobs("cpu", stress.JOBS):
        job.run()


# ---- planted faults -----------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, spoiled) -> None:
    """Every op goes through spoiled(right function, arguments)."""
    for name in stress.OPS:
        right = getattr(torch_mlxnorm, name)
        monkeypatch.setattr(torch_mlxnorm, name, lambda right=right, **k: spoiled(right, k))


def test_finds_a_buffer_that_threads_share(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {dtype: torch.empty(1 << 16, dtype=dtype, device=device) for dtype in DTYPES}

    def through_scratch(right, arguments):
        result = right(**arguments)
        first = result if isinstance(result, torch.Tensor) else result[0]
        scratch = shared[first.dtype][: first.numel()].view(first.shape)
        scratch.copy_(first)
        time.sleep(1e-4)
        first.copy_(scratch)
        return result

    spoil(monkeypatch, through_scratch)
    problems = slice_of(device).problems
    assert any(problem.startswith("bits differ") for problem in problems)


@pytest.mark.mps
def test_finds_a_leak(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []
    # Of what the process has by now, 6 % in the 200 calls between two measurements.
    floats = stress.Memory.now(device).rss * 6 // 100 // 200 // 4

    def leaks(right, arguments):
        kept.append(torch.ones(floats, device=device))
        return right(**arguments)

    spoil(monkeypatch, leaks)
    text = str(slice_of(device))
    assert "FAILED" in text and "RSS grew by" in text
    assert ("number of live Metal objects changed" in text) == (device == "mps")


def test_an_error_in_a_thread_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(right, arguments):
        raise RuntimeError("planted")

    spoil(monkeypatch, fails)
    assert "RuntimeError: planted" in slice_of("cpu").problems
