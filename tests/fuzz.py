"""Random calls of every op against the oracle, by number: `make fuzz N=100000 DEVICE=cpu`.

Case i is made from SEED and i alone. What has been done is kept in .cache/fuzz, so that a run that
was stopped goes on where it was, until the code or the tests change. A case that fails, or ends its
process, is minimised and printed with the command that runs it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import built
import metal_sim  # first: the simulated device must be there before anything asks for MPS
from progress import Progress

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".cache" / "fuzz"
BLOCK = 100  # cases that a process is given at once
LONG_ROWS = {"cpu": 0.02, "cuda": 0.02, "mps": 0.01}  # share of the cases
MAX_FAILURES = 10


@dataclasses.dataclass(frozen=True)
class Failure:
    number: int
    text: str
    case: str  # minimised

    def report(self, device: str, seed: int) -> str:
        again = f"make fuzz DEVICE={device} SEED={seed} CASE={self.number}"
        return f"{again}\n    {self.text}\n    smallest: {self.case}"


def case_of(seed: int, number: int, device: str) -> Any:
    from cases import random_case

    return random_case(Random(f"{seed}/{number}"), long_rows=LONG_ROWS[device])


def failure_of(case: Any, device: str) -> str | None:
    from cases import check_case

    try:
        check_case(case, device)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def minimised(case: Any, device: str) -> Any:
    """A simpler case that fails as well, of which nothing more can be left out."""
    for simpler in case.simpler():
        if failure_of(simpler, device):
            return minimised(simpler, device)
    return case


def run_cases(seed: int, numbers: range, device: str) -> Iterator[Failure]:
    for number in numbers:
        case = case_of(seed, number, device)
        if text := failure_of(case, device):
            yield Failure(number, text, repr(minimised(case, device)))


# ---- processes ----------------------------------------------------------------------------------


def prepare(device: str) -> None:
    """Load what the cases of a device need."""
    if device == "mps" and sys.platform != "darwin":
        metal_sim.enable()
    import torch

    torch.set_num_threads(2)  # rows are shared out, where there are many


def _run_block(seed: int, first: int, stop: int, device: str) -> list[Failure]:
    return list(run_cases(seed, range(first, stop), device))


def run_blocks(
    seed: int, first: int, stop: int, device: str, jobs: int, prepare: Callable = prepare
) -> Iterator[tuple[int, list[Failure]]]:
    """Number of cases done so far without a gap, and failures among them."""
    context = multiprocessing.get_context("spawn")
    starts = range(first, stop, BLOCK)
    found: dict[int, list[Failure]] = {}
    with ProcessPoolExecutor(jobs, context, prepare, (device,)) as pool:
        running = {
            pool.submit(_run_block, seed, start, min(start + BLOCK, stop), device): start
            for start in starts
        }
        done = first
        for future in as_completed(running):
            found[running[future]] = future.result()
            failures: list[Failure] = []
            while done in found:
                failures += found.pop(done)
                done = min(done + BLOCK, stop)
            yield done, failures


def find_crash(
    seed: int, first: int, stop: int, device: str, prepare: Callable = prepare
) -> Failure:
    """The first case that ends its process, by halves."""

    def dies(first: int, stop: int) -> bool:
        try:
            list(run_blocks(seed, first, stop, device, 1, prepare))
        except BrokenProcessPool:
            return True
        return False

    text = "the process died"
    if not dies(first, stop):
        return Failure(first, f"{text} in cases {first} to {stop - 1}, but not again", "?")
    while stop - first > 1:
        middle = (first + stop) // 2
        first, stop = (first, middle) if dies(first, middle) else (middle, stop)
    return Failure(first, text, repr(case_of(seed, first, device)))


# ---- what has been done -------------------------------------------------------------------------


def fingerprint() -> str:
    """Of everything that decides about a case."""
    folders = ["csrc/**/*", "shaders/**/*", "torch_mlxnorm/*.py"]
    names = ["fuzz", "cases", "ops", "steps", "oracle", "tensors"]
    files = [path for pattern in folders for path in ROOT.glob(pattern) if path.is_file()]
    files += [ROOT / "tests" / f"{name}.py" for name in names]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="cases in all")
    parser.add_argument("--device", choices=["cpu", "mps"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--case", type=int, help="run this one only")
    options = parser.parse_args(arguments)
    device, seed = options.device, options.seed

    if options.case is not None:
        prepare(device)
        print(case_of(seed, options.case, device))
        failures = list(run_cases(seed, range(options.case, options.case + 1), device))
        print("\n".join(f.report(device, seed) for f in failures) or "passes")
        return len(failures) > 0

    state_file = STATE / f"{device}-{seed}.json"
    state_file.parent.mkdir(parents=True, exist_ok=True)
    state = {"fingerprint": fingerprint(), "done": 0, "failures": []}
    if state_file.exists():
        kept = json.loads(state_file.read_text())
        if kept["fingerprint"] == state["fingerprint"]:
            state = kept
            print(f"{state['done']} cases were done before", file=sys.stderr)

    def note(done: int, failures: list[Failure]) -> None:
        state["done"] = done
        state["failures"] += [dataclasses.asdict(f) for f in failures]
        for failure in failures:
            print("\n" + failure.report(device, seed), flush=True)
        fresh = state_file.with_suffix(".new")
        fresh.write_text(json.dumps(state))
        fresh.replace(state_file)

    progress = Progress(f"fuzz {device}", options.count, state["done"])
    try:
        blocks = run_blocks(seed, state["done"], options.count, device, options.jobs)
        for done, failures in blocks:
            note(done, failures)
            progress.show(done, f"{len(state['failures'])} failures")
            if len(state["failures"]) >= MAX_FAILURES:
                blocks.close()
                break
    except BrokenProcessPool:
        stop = min(state["done"] + BLOCK * 2 * options.jobs, options.count)
        note(state["done"], [find_crash(seed, state["done"], stop, device)])
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        os._exit(130)
    count = len(state["failures"])
    print(f"fuzz {device}: {state['done']} cases, seed {seed}: {count} failures")
    return count > 0


if __name__ == "__main__":
    built.require_this_tree()
    sys.exit(main())
