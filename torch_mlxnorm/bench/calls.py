"""What one call costs on the CPU, by each way to call: 1 x 2816 in float32, one thread.

python -m torch_mlxnorm.bench.calls [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import torch_mlxnorm
from torch_mlxnorm._timing import keep_freed_memory, time_interleaved

from . import report
from .clocks import number_of_turns

DIM = 2816


def calls() -> dict[str, Callable[[], object]]:
    """By their text."""
    x, weight = torch.randn(1, DIM), torch.randn(DIM)
    out = torch.empty_like(x)
    op = torch.ops.mlxnorm.rms_norm
    ours = torch_mlxnorm.rms_norm
    record = torch_mlxnorm.RmsNormRecord(torch.float32, 1, DIM)
    return {
        "torch_mlxnorm.RmsNormRecord(…)(x, weight, out)": lambda: record(x, weight, out),
        "torch.ops.mlxnorm.rms_norm.out(x, weight, out=out)": lambda: op.out(x, weight, out=out),
        "torch.ops.mlxnorm.rms_norm.default(x, weight)": lambda: op.default(x, weight),
        "torch.ops.mlxnorm.rms_norm(x, weight, out=out)": lambda: op(x, weight, out=out),
        "torch.ops.mlxnorm.rms_norm(x, weight)": lambda: op(x, weight),
        "torch_mlxnorm.rms_norm(x, weight)": lambda: ours(x, weight),
        "torch_mlxnorm.rms_norm(x, weight, out=out)": lambda: ours(x, weight, out=out),
        'torch_mlxnorm.rms_norm(x, weight, casting_mode="llama")': lambda: ours(
            x, weight, casting_mode="llama"
        ),
        f"F.layer_norm(x, ({DIM},), weight)": lambda: F.layer_norm(x, (DIM,), weight),
        f"F.rms_norm(x, ({DIM},), weight, 1e-6)": lambda: F.rms_norm(x, (DIM,), weight, 1e-6),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench.calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=number_of_turns, default=101)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = report.machine("cpu")
    print(f"{machine['name']}, torch {machine['torch']}")
    times = time_interleaved(calls(), turns=options.turns)
    records = []
    for name in times.turns:
        us = [round(seconds * 1e6, 3) for seconds in times.quartiles(name)]
        records.append({"call": name, "us": us})
        print(f"{name:58}{report.microseconds(records[-1])}")
    if options.json:
        report.write_json(options.json, machine, records)


if __name__ == "__main__":
    keep_freed_memory()
    main()
