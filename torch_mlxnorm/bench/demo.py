"""Runs each op on activations with the shapes of public models, checks its results against a
float64 reference and times it as `python -m torch_mlxnorm.bench` does.

    python -m torch_mlxnorm.bench.demo [--device auto|cpu|mps|sim]

`auto` is MPS on a Mac that has it, else the CPU. `sim` (in a checkout) executes the Metal kernels
on the CPU: the same checks, no times.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import torch
from torch import Tensor

import torch_mlxnorm
from torch_mlxnorm import reference
from torch_mlxnorm._calls import Summands
from torch_mlxnorm._checkout import from_tests
from torch_mlxnorm._exactness import Comparison, compare, rounds_between
from torch_mlxnorm._timing import keep_freed_memory

from . import report
from .case import Case, as_tuple
from .compositions import COMPOSITIONS
from .peers import PEERS, measure
from .shapes import DTYPES, Line, lines_by_model

TURNS = 7


def select_device(wanted: str) -> str:
    if wanted == "sim":
        metal_sim = from_tests("metal_sim", "demo: --device sim")
        try:
            metal_sim.enable()
        except RuntimeError as error:  # a tool is missing, or this is a Mac
            sys.exit(f"demo: --device sim: {error}")
        return "mps"
    mps = torch.backends.mps.is_available()
    if wanted == "mps" and not mps:
        sys.exit("demo: --device mps: PyTorch finds no Apple GPU")
    return wanted if wanted != "auto" else "mps" if mps else "cpu"


def absolute(value: object) -> object:
    return Summands.of(value) if isinstance(value, Tensor) else value


def comparisons(case: Case, results: object) -> list[Comparison]:
    """Of what should be the results of a case's op."""
    exact = getattr(reference, case.op)
    expected = exact(*case.arguments, **case.keywords)
    magnitude = exact(
        *map(absolute, case.arguments),
        **{name: absolute(value) for name, value in case.keywords.items()},
    )
    rounded = rounds_between(case.op, case.dtype, case.keywords)
    everything = zip(*map(as_tuple, (results, expected, magnitude)), strict=True)
    return [compare(a, e, m.as_subclass(Tensor), rounded=rounded) for a, e, m in everything]


def show(line: Line, device: str, timed: bool) -> bool:
    """A line of the table; whether the results are right."""
    case = Case(line, device)
    results = comparisons(case, getattr(torch_mlxnorm, case.op)(*case.arguments, **case.keywords))
    error = max(result.largest_error for result in results)
    text = f"{report.place(line)}{error:10.1e}"
    if timed:
        text += report.cells(report.record(line, case, measure(case, PEERS, TURNS)))
    right = not any(result.wrong for result in results)
    print(text if right else text + "  WRONG", flush=True)
    return right


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "mps", "sim"])
    wanted = parser.parse_args().device
    # On a busy machine, threads that wait for each other time the scheduler.
    torch.set_num_threads(1)
    device = select_device(wanted)
    timed = wanted != "sim"
    machine = report.machine(device)
    where = machine["name"] if timed else "simulated Metal, not timed"
    print(f"{where}, torch {machine['torch']}")
    print(f"{report.PLACE_HEAD}{'max error':>10}{report.CELLS_HEAD if timed else ''}")
    verdicts: list[bool] = []
    by_op = sorted(
        lines_by_model("cpu", DTYPES), key=lambda line: list(COMPOSITIONS).index(line.use.op)
    )
    for op, lines in itertools.groupby(by_op, lambda line: line.use.op):
        print(op)
        verdicts += [show(line, device, timed) for line in lines]
    print(f"{sum(verdicts)} of {len(verdicts)} results match the float64 reference")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
