"""What a new result costs on the CPU, beside one that is there: memory just mapped is zeroed page
by page when it is first written. rms_norm of 4096 x 4096 in float32, its `.out`, and a clone, for
each way in which a process gets its memory (Linux).

    python -m torch_mlxnorm.bench.fresh [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import torch_mlxnorm  # noqa: F401  (registers the operators)
from torch_mlxnorm._timing import KEEP_FREED_MEMORY

from . import report
from .clocks import number_of_turns

WAYS: dict[str, Mapping[str, str]] = {
    "as it is": {},
    "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},  # PyTorch asks for them
    "freed memory kept": KEEP_FREED_MEMORY,
}


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@torch.inference_mode()
def measure(turns: int) -> dict[str, dict[str, float]]:
    """In this process: medians of its processor time, and page faults of a call."""
    torch.set_num_threads(1)
    x, out = torch.randn(4096, 4096), torch.empty(4096, 4096)
    op = torch.ops.mlxnorm.rms_norm
    calls: dict[str, Callable[[], object]] = {
        "rms_norm": lambda: op.default(x, None),
        "rms_norm.out": lambda: op.out(x, None, out=out),
        "clone": lambda: x.clone(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    faults: dict[str, int] = {}
    for turn in range(turns + 1):
        for name, call in calls.items():
            before, start = page_faults(), time.thread_time()
            call()  # and what it gave is freed
            end = time.thread_time()
            faults[name] = page_faults() - before
            if turn > 0:
                seconds[name].append(end - start)
    return {
        name: {"us": round(statistics.median(seconds[name]) * 1e6, 1), "faults": faults[name]}
        for name in calls
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench.fresh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=number_of_turns, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--here", action="store_true", help="in this process; prints JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.turns)))
        return
    command = [sys.executable, "-m", __spec__.name, "--here", "--turns", str(options.turns)]
    records = []
    for way, variables in WAYS.items():
        done = subprocess.run(
            command, env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True
        )
        for call, figures in json.loads(done.stdout).items():
            records.append({"way": way, "call": call, **figures})
            print(f"{way:18} {call:13} {figures['us'] / 1e3:8.2f} ms {figures['faults']:7} faults")
    if options.json:
        report.write_json(options.json, report.machine("cpu"), records)


if __name__ == "__main__":
    main()
