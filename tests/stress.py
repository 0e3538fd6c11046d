"""Many threads, many calls: equal bits, no growth of memory. `make stress DEVICE=cpu|mps`.

Every thread makes calls of a set of mixed ones (ops, dtypes, layouts, functional, `out=`, records),
in an order of its own, from the first call of the process on. The first result of each is what all
later ones are compared with, and in the end a single thread's. Between rounds, when nothing runs,
memory is measured: from the middle of the run on, it may not grow.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import built
import metal_sim  # first: the simulated device must be there before anything asks for MPS
from progress import Progress

if __name__ == "__main__":
    built.require_this_tree()
    if "mps" in sys.argv and sys.platform != "darwin":
        metal_sim.enable()

import torch
from cases import Case, random_case
from ops import OPS, Call
from torch import Tensor

JOBS = 200
ROUNDS = 20
RSS_GROWTH = 0.02  # over the last half
Results = tuple[Tensor, ...]


# ---- calls --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """Something to call again and again, which leaves its arguments as they are."""

    name: str
    run: Callable[[], Results]


def jobs(device: str, count: int, seed: int = 0) -> list[Job]:
    random = Random(seed)
    result: list[Job] = []
    while len(result) < count:
        case = random_case(random)
        if 0 not in case.leading and torch.Size(case.leading).numel() * case.dim < 1000:
            result.append(
                _job(case, device, random.choice(["functional", "out", "in place", "record"]))
            )
    if device == "cpu":  # so many rows that every call wants several threads of its own
        result += [_job(Case(op, (70,), 600, torch.float32), device, "functional") for op in OPS]
    return result


def _job(case: Case, device: str, how: str) -> Job:
    call = case.call(device)
    packed = call.mapped(Tensor.contiguous)

    def functional() -> Results:
        return call()

    def out() -> Results:
        return call(out=call.empty_outs())

    def in_place() -> Results:
        return _over_an_activation(packed)

    def by_record() -> Results:
        return packed.by(record, packed.empty_outs())

    record = packed.prebaked(packed.empty_outs()) if how == "record" else None
    run = {"functional": functional, "out": out, "in place": in_place, "record": by_record}[how]
    return Job(f"{how} {case}", run)


def _over_an_activation(call: Call) -> Results:
    """The last that has the dtype of the result: a residual may have another one."""
    first, *others = call.empty_outs()
    name = [name for name in call.op.may_overwrite[0] if call[name].dtype == first.dtype][-1]
    overwritten = call.mapped(torch.clone, [name])
    return overwritten(out=[overwritten[name], *others])


def bits(results: Results) -> list[Tensor]:
    """NaNs keep theirs: one device gives the same ones."""
    integers = {4: torch.int32, 2: torch.int16}
    return [r.cpu().view(integers[r.element_size()]) for r in results]


# ---- memory -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Memory:
    rss: int  # bytes
    objects: dict[str, int]  # Metal's, that exist

    @staticmethod
    def now(device: str) -> Memory:
        gc.collect()
        if device == "mps":
            torch.mps.synchronize()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        simulated = device == "mps" and metal_sim.is_enabled()
        objects = metal_sim.live_objects() if simulated else {}
        return Memory(pages * os.sysconf("SC_PAGE_SIZE"), objects)


# ---- running ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    device: str
    threads: int
    calls: int
    seconds: float
    memory: list[Memory]
    different: list[str]  # names of jobs whose bits differed, or what they raised

    @property
    def problems(self) -> list[str]:
        last_half = self.memory[len(self.memory) // 2 :]
        found = list(dict.fromkeys(self.different))[:10]
        first, most = last_half[0].rss, max(m.rss for m in last_half)
        if most > (1 + RSS_GROWTH) * first:
            found.append(f"RSS grew by {100 * (most / first - 1):.1f} % over the last half")
        if any(m.objects != last_half[0].objects for m in last_half):
            found.append("the number of live Metal objects changed over the last half")
        return found

    def __str__(self) -> str:
        half, end = self.memory[len(self.memory) // 2], self.memory[-1]
        lines = [
            f"stress {self.device}: {self.threads} threads, {self.calls} calls in "
            f"{self.seconds:.0f} s: {'FAILED' if self.problems else 'equal bits, memory flat'}",
            f"  RSS {half.rss / 2**20:.1f} MiB at half, {end.rss / 2**20:.1f} MiB at the end "
            f"({100 * (end.rss / half.rss - 1):+.2f} %)",
        ]
        if end.objects:
            lines.append(f"  live Metal objects at half {half.objects}, at the end {end.objects}")
        return "\n".join(lines + [f"  {problem}" for problem in self.problems])


def run(
    device: str,
    threads: int,
    calls: int,
    of: list[Job],
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Report:
    """`calls` calls in each of `threads` threads."""
    expected: dict[int, list[Tensor]] = {}
    different: list[str] = []
    memory: list[Memory] = []
    counts = [0] * threads
    # At its turn each thread waits; the last one to come measures.
    between_rounds = threading.Barrier(threads, action=lambda: memory.append(Memory.now(device)))

    def compare(index: int, results: Results) -> None:
        ours = bits(results)
        theirs = expected.setdefault(index, ours)
        if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
            different.append(f"bits differ: {of[index].name}")

    def call_and_compare(indices: list[int]) -> None:
        for index, results in [(i, of[i].run()) for i in indices]:
            compare(index, results)

    def work(thread: int) -> None:
        random = Random(thread)
        waiting = random.sample(range(len(of)), len(of))  # each once, then any
        try:
            for end in [calls * (i + 1) // rounds for i in range(rounds)]:
                while counts[thread] < end:
                    # Several before a result is waited for, as a decode loop does.
                    size = min(random.randint(1, 4), end - counts[thread])
                    waiting += random.choices(range(len(of)), k=size)
                    call_and_compare(waiting[:size])
                    del waiting[:size]
                    counts[thread] += size
                between_rounds.wait()
        except threading.BrokenBarrierError:
            pass
        except Exception as error:
            different.append(f"{type(error).__name__}: {error}")
            between_rounds.abort()

    begin = time.monotonic()
    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        workers[0].join(0.2)
        if progress:
            progress.show(min(sum(counts), progress.total - 1))
    if progress:
        progress.show(progress.total)
    for index in expected:
        compare(index, of[index].run())
    memory = memory or [Memory.now(device)]
    return Report(device, threads, sum(counts), time.monotonic() - begin, memory, different)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "mps"], default="cpu")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=10_000, help="of each thread")
    options = parser.parse_args()
    torch.set_num_threads(2)
    report = run(
        options.device,
        options.threads,
        options.calls,
        jobs(options.device, JOBS),
        progress=Progress(f"stress {options.device}", options.threads * options.calls),
    )
    print(report)
    return len(report.problems) > 0


if __name__ == "__main__":
    sys.exit(main())
