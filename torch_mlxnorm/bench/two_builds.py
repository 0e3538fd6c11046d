"""Every op on the CPU in two builds of the package, turn by turn in one run.

    python benchmarks/two_builds.py BEFORE [AFTER] [--only TEXT] [--turns N]

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
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from compositions import COMPOSITIONS

import torch_mlxnorm
from torch_mlxnorm._timing import KEEP_FREED_MEMORY

ROOT = Path(__file__).resolve().parents[1]
WAYS = ["rms_norm", "rms_norm.out", "add_rms_norm", "add_rms_norm.out", "function", "record"]
SECONDS_PER_TURN = 0.004

Line = tuple[str, str, str]  # what, shape, dtype


def lines() -> Iterator[Line]:
    from cpu import DTYPES, FUSED_DTYPES, FUSED_SHAPES, SHAPES  # of one build: not in its processes

    for way in WAYS:
        yield f"call of {way}", "1x64", "float32"
    for op in COMPOSITIONS:
        shapes, dtypes = (SHAPES, DTYPES) if op == "rms_norm" else (FUSED_SHAPES, FUSED_DTYPES)
        yield from ((op, shape, dtype) for shape in shapes for dtype in dtypes)


# ---- one build ----------------------------------------------------------------------------------


def short_call(way: str, rows: int, dim: int, dtype: torch.dtype) -> Callable[[], object]:
    x, weight, out, residual_out = torch.ones(4, rows, dim, dtype=dtype)
    if way == "function":
        return lambda: torch_mlxnorm.rms_norm(x, weight[0], out=out)
    if way == "record":
        return partial(torch_mlxnorm.RmsNormRecord(dtype, rows, dim), x, weight[0], out)
    name, _, overload = way.partition(".")
    op = getattr(getattr(torch.ops.mlxnorm, name), overload or "default")
    arguments = (x, weight[0]) if name == "rms_norm" else (x, x, weight[0])
    outs = {"out": out, "residual_out": residual_out}
    names = [a.name for a in op._schema.arguments if a.is_out]
    return partial(op, *arguments, **{name: outs[name] for name in names})


def call_of(what: str, shape: str, dtype_name: str) -> Callable[[], object]:
    rows, dim = map(int, shape.split("x"))
    dtype = getattr(torch, dtype_name)
    if what.startswith("call of "):
        return short_call(what.removeprefix("call of "), rows, dim, dtype)
    sizes = {"rows": rows, "dim": dim, "half": dim // 2, "top_k": 8, "1": 1}
    tensors = {
        name: torch.randn([sizes.get(size) or int(size) for size in shape.split()]).to(dtype)
        for name, shape in COMPOSITIONS[what].shapes.items()
        if shape is not None  # the other build may not have such an argument
    }
    op = getattr(torch.ops.mlxnorm, what).out
    usual = torch.empty(rows, dim, dtype=dtype)
    outs = {
        a.name: torch.empty_like(tensors.get(a.name.removesuffix("_out"), usual))  # q of q_out
        for a in op._schema.arguments
        if a.is_out
    }
    return partial(op, **tensors, **outs)


@torch.inference_mode()
def serve() -> None:
    """Says which ops there are. For every request on stdin: a line of the table makes the call, an
    empty line takes a turn and answers with seconds a call."""
    torch.set_num_threads(1)
    print(json.dumps([op for op in COMPOSITIONS if hasattr(torch.ops.mlxnorm, op)]), flush=True)
    for request in sys.stdin:
        if request.strip():
            call = call_of(*json.loads(request))
            call()
            start = time.perf_counter()
            call()
            count = max(1, int(SECONDS_PER_TURN / max(time.perf_counter() - start, 1e-7)))
        else:
            start = time.thread_time()
            for _ in range(count):
                call()
            print((time.thread_time() - start) / count, flush=True)


class Build:
    def __init__(self, checkout: Path) -> None:
        environment = os.environ | KEEP_FREED_MEMORY | {"PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        self.ops: list[str] = json.loads(self._read())

    def make(self, line: Line) -> None:
        self._write(json.dumps(line))

    def turn(self) -> float:
        self._write("")
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        print(text, file=self._process.stdin, flush=True)


# ---- both ---------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--only", default="", help="lines that hold this text")
    parser.add_argument("--turns", type=int, default=31)
    options = parser.parse_args()

    before, after = (Build(path.resolve()) for path in (options.before, options.after))
    isa = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {isa}, 1 thread, {options.turns} turns; after over before")
    ratios = []
    for line in lines():
        what, shape, dtype = line
        text = f"{what:38}{shape:>10} {dtype:9}"
        new = what in COMPOSITIONS and what not in before.ops
        if options.only not in text or new:
            continue
        for build in (before, after):
            build.make(line)
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
    serve() if sys.argv[1:] == ["--serve"] else main()
