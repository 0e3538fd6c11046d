"""Every op on the CPU in two builds of the package, turn by turn in one run.

    python -m torch_mlxnorm.bench.two_builds BEFORE [AFTER] [--only TEXT] [--turns N]

BEFORE and AFTER are checkouts that are built; AFTER is this one unless it is given. Each has a
process of its own, and they take turns. A line is the median over the turns of the time of a call
after over before: processor time of one thread, `.out` overloads, freed memory kept. The first
lines are short rows, by each way to call: what a call costs beside its kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from torch_mlxnorm._timing import KEEP_FREED_MEMORY

from .clocks import number_of_turns
from .compositions import COMPOSITIONS
from .shapes import lines_by_shape

ROOT = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).with_name("one_build.py")
WAYS = ["rms_norm", "rms_norm.out", "add_rms_norm", "add_rms_norm.out", "function", "record"]

Request = dict[str, Any]


def requests() -> Iterator[tuple[str, Request]]:
    """With what they are called in the table."""
    for way in WAYS:
        yield f"{f'call of {way}':38}{'1x64':>10} {'float32':9}", {"way": way}
    for line in lines_by_shape("cpu"):
        op, inputs, outs = line.use.op, line.inputs(), line.outs()
        yield (
            f"{op:38}{line.shape:>10} {line.dtype_name:9}",
            {
                "op_name": op,
                "shapes": {name: t.shape for name, t in inputs.items() if t is not None},
                "outs": {name: t.shape for name, t in outs.items()},
                "dtype": line.dtype_name,
            },
        )


class Build:
    def __init__(self, checkout: Path) -> None:
        environment = os.environ | KEEP_FREED_MEMORY | {"PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._write(list(COMPOSITIONS))
        self.ops: list[str] = json.loads(self._read())

    def make(self, request: Request) -> None:
        self._write(request)

    def turn(self) -> float:
        self._write(None)
        return float(self._read())

    def end(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _write(self, request: object) -> None:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench.two_builds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--only", default="", help="lines that hold this text")
    parser.add_argument("--turns", type=number_of_turns, default=31)
    options = parser.parse_args()
    for path in (options.before, options.after):
        if not list(path.glob("torch_mlxnorm/_C.*")):
            parser.error(f"{path} is no checkout that is built")

    before, after = (Build(path.resolve()) for path in (options.before, options.after))
    isa = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {isa}, 1 thread, {options.turns} turns; after over before")
    ratios = []
    for text, request in requests():
        new = request.get("op_name", before.ops[0]) not in before.ops
        if options.only not in text or new:
            continue
        for build in (before, after):
            build.make(request)
            build.turn()
        turns = []
        for turn in range(options.turns):
            order = [before, after] if turn % 2 else [after, before]
            times = {build: build.turn() for build in order}
            turns.append((times[before], times[after]))
        ratio = statistics.median(b / a for a, b in turns)
        ratios.append(ratio)
        low, _, high = statistics.quantiles((b / a for a, b in turns), n=4)
        seconds = statistics.median(a for a, _ in turns)
        print(f"{text}{seconds * 1e6:10.2f} us{ratio:7.3f}  [{low:.3f}, {high:.3f}]", flush=True)
    print(f"geometric mean {statistics.geometric_mean(ratios):.3f}, {len(ratios)} lines")


if __name__ == "__main__":
    main()
