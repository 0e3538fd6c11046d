"""Times the ops against what there is instead of them, and against what memory allows.

    python -m torch_mlxnorm.bench [--device cpu|mps|cuda] [--op NAME] [--shape ROWSxDIM] [--dtype NAME]

Every figure is the median of interleaved turns. `plain` is the time of a plain kernel with as many
reads and writes over ours, `copy` that of a copy of as many bytes; each input counts as read once
and each result as written once. The other columns say how many times as fast ours is. Ours writes
to its outs. On the CPU one thread is timed, with freed memory kept. `cuda` needs a checkout: the
Metal kernels are translated (tests/gpu), CUDA graphs are timed, and tensors are used in rotation so
that they come from memory.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from torch_mlxnorm._timing import keep_freed_memory

from . import report
from .compositions import COMPOSITIONS
from .peers import PEERS, measure
from .shapes import Line, lines_by_model, lines_by_shape, of_shape

DTYPES = ["float32", "bfloat16", "float16"]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    many = {"nargs": "+", "default": []}
    mps = torch.backends.mps.is_available()
    parser.add_argument("--device", choices=["cpu", "mps", "cuda"], default="mps" if mps else "cpu")
    parser.add_argument("--op", choices=COMPOSITIONS, metavar="NAME", help="only these ops", **many)
    parser.add_argument("--shape", metavar="ROWSxDIM", help="these instead", **many)
    parser.add_argument("--dtype", choices=DTYPES, metavar="NAME", help="only these", **many)
    parser.add_argument("--set", choices=["shapes", "models"], help="by shape, or of models; both")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), metavar="NAME",
        help="; ".join(f"{name}: {what}" for name, what in PEERS.items()),
    )  # fmt: skip
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile beforehand")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="NAME", help="write NAME.png and NAME.svg")
    parser.add_argument("--compile-only", metavar="I/N", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> Iterator[Line]:
    if options.shape:
        dtypes = [getattr(torch, name) for name in options.dtype or DTYPES]
        for op in options.op or COMPOSITIONS:
            yield from (of_shape(op, s, d) for s in options.shape for d in dtypes)
        return
    sets = {"shapes": lines_by_shape, "models": lines_by_model}
    for name, lines in sets.items():
        for line in lines(options.device):
            if (
                options.set in (None, name)
                and line.use.op in (options.op or COMPOSITIONS)
                and line.dtype_name in (options.dtype or DTYPES)
            ):
                yield line


def prepare(device: str) -> None:
    torch.set_num_threads(1)
    if device == "cuda":
        os.environ.setdefault("MLXNORM_GPU_MATH", "native")
        tests = Path(__file__).resolve().parents[2] / "tests"
        if not (tests / "gpu").is_dir():
            sys.exit("--device cuda needs a checkout, with tests/gpu: the kernels are translated")
        sys.path.insert(0, str(tests))
        importlib.import_module("gpu").enable()


def compile_beforehand(lines: list[Line], options: argparse.Namespace) -> None:
    """Kernels and compiled peers, which both have caches on disk."""
    for line in lines:
        case = line.case(options.device)
        case.ours()()
        if "compiled" in options.peers:
            case.compiler()(case)()


def in_processes(arguments: list[str], jobs: int) -> None:
    command = [sys.executable, "-m", __package__, *arguments, "--compile-only"]
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, f"{job}/{jobs}"], env=environment) for job in range(jobs)
    ]
    for process in processes:
        process.wait()


def progress(done: int, count: int, line: Line) -> None:
    if sys.stderr.isatty():
        bar = "#" * (30 * done // count)
        print(f"\r\033[K[{bar:30}] {done}/{count} {line.use.op} {line.shape}", end="\r",
              file=sys.stderr, flush=True)  # fmt: skip


@torch.inference_mode()
def main(arguments: list[str]) -> int:
    options = parse(arguments)
    prepare(options.device)
    lines = list(chosen(options))
    if options.compile_only:
        job, jobs = map(int, options.compile_only.split("/"))
        compile_beforehand(lines[job::jobs], options)
        return 0
    if options.jobs > 1:
        in_processes(arguments, options.jobs)
    machine = report.machine(options.device)
    print(f"torch {machine['torch']}, {machine['name']}")
    print(report.head())
    records = []
    for done, line in enumerate(lines):
        progress(done, len(lines), line)
        result = measure(line.case(options.device), options.peers, options.turns)
        records.append(report.record(line, result))
        print(report.row(records[-1]), flush=True)
    if options.json:
        report.write_json(options.json, machine, records)
    if options.plot:
        report.plot([options.plot.with_suffix(s) for s in (".png", ".svg")], machine, records)
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
