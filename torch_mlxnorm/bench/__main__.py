"""Times the ops against what there is instead of them, and against what memory allows.

    python -m torch_mlxnorm.bench [--op NAME] [--shape ROWSxDIM] [--dtype NAME] [--json FILE]

Every figure is the median of interleaved turns. `plain` is the time of a plain kernel with as many
reads and writes over ours, `copy` that of a copy of as many bytes: each input counts as read once
and each result as written once. The other columns say how many times as fast ours is. Ours writes
to its outs.

cpu: one thread, which finds short rows in its caches; on Linux freed memory is kept, so that fresh
results cost no page faults. mps: calls are given one after another, and waited for at the end of a
turn. cuda needs a checkout: the Metal kernels are translated (tests/gpu), CUDA graphs are timed,
and tensors are used in rotation so that they come from memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from torch_mlxnorm._checkout import from_tests
from torch_mlxnorm._timing import keep_freed_memory

from . import report
from .case import Case
from .clocks import number_of_turns
from .compositions import COMPOSITIONS
from .peers import PEERS, measure
from .shapes import DTYPES, Line, lines_by_model, lines_by_shape, of_shape

NAMES = [str(dtype).removeprefix("torch.") for dtype in DTYPES]


def shape(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxDIM, such as 512x4096")
    return text


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
    parser.add_argument(
        "--shape", type=shape, metavar="ROWSxDIM", help="these; of heads: tokens, dim", **many
    )
    parser.add_argument("--dtype", choices=NAMES, metavar="NAME", help="only these", **many)
    parser.add_argument("--set", choices=["shapes", "models"], help="only by shape, or of models")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), metavar="NAME",
        help="; ".join(f"{name}: {what}" for name, what in PEERS.items()),
    )  # fmt: skip
    parser.add_argument("--turns", type=number_of_turns, default=15)
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile beforehand")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="NAME", help="write NAME.png and NAME.svg")
    parser.add_argument("--compile-only", metavar="I/N", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.lines = list(chosen(options))
    if options.shape and options.set:
        parser.error("--shape or --set, not both")
    if not options.lines:
        parser.error(f"no shape of these ops is in --set {options.set} on {options.device}")
    for path in (options.json, options.plot):
        if path is not None and not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent}")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    return options


def chosen(options: argparse.Namespace) -> Iterator[Line]:
    """Op by op."""
    dtypes = [getattr(torch, name) for name in options.dtype]
    sets = {"shapes": lines_by_shape, "models": lines_by_model}
    names = [options.set] if options.set else sets
    lines = [line for name in names for line in sets[name](options.device, dtypes)]
    for op in options.op or COMPOSITIONS:
        if options.shape:
            yield from (of_shape(op, s, d) for s in options.shape for d in dtypes or DTYPES)
        else:
            yield from (line for line in lines if line.use.op == op)


def prepare(device: str) -> None:
    torch.set_num_threads(1)
    if device == "mps" and not torch.backends.mps.is_available():
        sys.exit("--device mps: PyTorch finds no Apple GPU")
    if device == "cuda":
        os.environ.setdefault("MLXNORM_GPU_MATH", "native")
        gpu = from_tests("gpu", "--device cuda")
        try:
            gpu.enable()
        except gpu.MissingTool as error:
            sys.exit(f"--device cuda: {error}")


def compile_beforehand(options: argparse.Namespace) -> None:
    """A share of the kernels and compiled peers, for which there are caches on disk."""
    job, jobs = map(int, options.compile_only.split("/"))
    for line in options.lines[job::jobs]:
        case = Case(line, options.device)
        case.ours()()
        if "compiled" in options.peers:
            case.compiler()(case)()


def in_processes(arguments: list[str], jobs: int) -> None:
    command = [sys.executable, "-m", __package__, *arguments, "--compile-only"]
    one_thread = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment = os.environ | one_thread
    processes = [
        subprocess.Popen([*command, f"{job}/{jobs}"], env=environment) for job in range(jobs)
    ]
    if any([process.wait() for process in processes]):
        sys.exit("a process that compiles has failed")


def show_progress(done: int, count: int, begin: float) -> None:
    """On a terminal, where the next line of the table comes."""
    if sys.stderr.isatty():
        elapsed = time.monotonic() - begin
        left = f", {elapsed / done * (count - done):.0f} s left" if done else ""
        bar = "#" * (30 * done // count)
        print(f"[{bar:.<30}] {done}/{count}{left}\r", end="", file=sys.stderr, flush=True)


@torch.inference_mode()
def main(arguments: list[str]) -> int:
    options = parse(arguments)
    prepare(options.device)
    if options.compile_only:
        compile_beforehand(options)
        return 0
    if options.jobs > 1:
        in_processes(arguments, options.jobs)
    machine = report.machine(options.device)
    print(f"{machine['name']}, torch {machine['torch']}, {options.turns} turns")
    print(report.PLACE_HEAD + report.CELLS_HEAD)
    records: list[report.Record] = []
    begin = time.monotonic()
    for done, line in enumerate(options.lines):
        if done == 0 or line.use.op != options.lines[done - 1].use.op:
            print(line.use.op, flush=True)
        show_progress(done, len(options.lines), begin)
        case = Case(line, options.device)
        times = measure(case, options.peers, options.turns)
        records.append(report.record(line, case, times))
        print(report.place(line) + report.cells(records[-1]), flush=True)
        if options.json:  # what there is, should a later line fail
            report.write_json(options.json, machine, records)
    if options.plot:
        name = options.plot.name
        paths = [options.plot.with_name(name + suffix) for suffix in (".png", ".svg")]
        report.plot(paths, machine, records)
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
