"""The gain of a second thread on the CPU: rms_norm in float32 of 4096 x 4096 and of a single row,
which threads share, each beside a copy, which shows what the memory of the machine allows.

    python -m torch_mlxnorm.bench.threads [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from torch_mlxnorm._timing import keep_freed_memory, stolen

from . import report
from .clocks import number_of_turns

WARM_UP, MEASURED = 0.01, 0.01  # seconds, at least


def seconds(call: Callable[[], object], threads: int) -> float:
    """Of a call, among few after a pause: two busy threads soon use up what a shared machine
    grants. A thread that slept wakes on the core of the one that woke it, and moves in the first
    milliseconds."""
    torch.set_num_threads(threads)
    time.sleep(0.02)
    _mean(call, WARM_UP)
    return _mean(call, MEASURED)


def _mean(call: Callable[[], object], least: float) -> float:
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < least:
        call()
        count += 1
    return (time.perf_counter() - start) / count


def gains(call: Callable[[], object], count: int) -> list[float]:
    """Of the turns that the hypervisor did not disturb; of all if it disturbed nearly all."""
    undisturbed, everything = [], []
    for _ in range(count):
        before = stolen()
        everything.append(seconds(call, 1) / seconds(call, 2))
        if stolen() == before:
            undisturbed.append(everything[-1])
    return undisturbed if len(undisturbed) >= max(2, count / 5) else everything


def calls() -> dict[str, Callable[[], object]]:
    op, calls = torch.ops.mlxnorm.rms_norm.out, {}
    for shape in [(4096, 4096), (1, 2**20)]:
        x, out = torch.randn(shape), torch.empty(shape)
        size = "x".join(map(str, shape))
        calls[f"rms_norm {size}"] = functools.partial(op, x, None, out=out)
        calls[f"copy {size}"] = functools.partial(out.copy_, x)
    return calls


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench.threads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=number_of_turns, default=150)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    records = []
    for name, call in calls().items():
        ratios = gains(call, options.turns)
        quartiles = [round(ratio, 3) for ratio in statistics.quantiles(ratios, n=4)]
        records.append(
            {"call": name, "gain": quartiles, "turns": options.turns, "undisturbed": len(ratios)}
        )
        low, middle, high = quartiles
        print(
            f"{name:18} {middle:.2f}x (quartiles {low:.2f} to {high:.2f}, "
            f"{len(ratios)} of {options.turns} turns)"
        )
    if options.json:
        report.write_json(options.json, report.machine("cpu"), records)


if __name__ == "__main__":
    keep_freed_memory()
    main()
