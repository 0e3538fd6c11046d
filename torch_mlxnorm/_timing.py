"""Timing on machines that are shared and noisy: the candidates take turns in one run, ratios are
taken within a turn before their median is, and a turn does not count when the hypervisor gave the
processor to somebody else meanwhile (Linux tells)."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

# glibc gives large freed blocks back to the system, so that every fresh result costs page faults
# that have nothing to do with the kernel. These settings keep them.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**36),
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**28),
}


def keep_freed_memory() -> None:
    """Restarts the program with an allocator that keeps what is freed (Linux)."""
    if sys.platform == "linux" and any(name not in os.environ for name in KEEP_FREED_MEMORY):
        os.environ.update(KEEP_FREED_MEMORY)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@dataclass(frozen=True)
class Times:
    """Seconds a call, one entry a turn, for each candidate."""

    turns: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.turns[name])

    def quartiles(self, name: str) -> list[float]:
        return statistics.quantiles(self.turns[name], n=4)

    def speedup(self, name: str, over: str) -> float:
        """How many times as fast `name` is as `over`."""
        return statistics.median(self._speedups(name, over))

    def speedup_quartiles(self, name: str, over: str) -> list[float]:
        return statistics.quantiles(self._speedups(name, over), n=4)

    def _speedups(self, name: str, over: str) -> list[float]:
        pairs = zip(self.turns[over], self.turns[name], strict=True)
        return [theirs / ours for theirs, ours in pairs]


def stolen() -> int:
    """Ticks that this virtual machine wanted to run and could not; always 0 where unknown."""
    if sys.platform != "linux":
        return 0
    with open("/proc/stat") as stat:
        return int(stat.readline().split()[8])


def waiting_for(device: str) -> Callable[[], object]:
    """What returns when the device has done all it was given."""
    return torch.mps.synchronize if device == "mps" else lambda: None


def _calls_of_a_turn(
    candidate: Callable[[], object], wait: Callable[[], object], seconds: float
) -> int:
    """By as many calls as take half of it, the best of three times: one may have met cold caches or
    an interruption."""

    def time_of(count: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(count):
            candidate()
        wait()
        return time.perf_counter() - start

    count = 1
    while (taken := min(time_of(count) for _ in range(3))) < seconds / 2:
        count *= 2
    return max(1, int(count * seconds / taken))


def time_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    wait: Callable[[], object] = lambda: None,
    host_only: bool = False,
    turns: int = 15,
    seconds_per_turn: float = 0.004,
) -> Times:
    """Each turn calls every candidate for about `seconds_per_turn`, in rotating order, and waits
    for the device once at the end of it; with `host_only` that is not part of the time."""
    calls = {}
    for name, candidate in candidates.items():
        candidate()  # compiles, allocates, warms up
        calls[name] = _calls_of_a_turn(candidate, wait, seconds_per_turn)
    names = list(candidates)
    results: dict[str, list[float]] = {name: [] for name in names}
    attempts = 0
    while len(results[names[0]]) < turns:
        shift = attempts % len(names)
        attempts += 1
        before = stolen()
        turn = {}
        for name in names[shift:] + names[:shift]:
            candidate, count = candidates[name], calls[name]
            start = time.perf_counter()
            for _ in range(count):
                candidate()
            given = time.perf_counter()
            wait()
            end = given if host_only else time.perf_counter()
            turn[name] = (end - start) / count
        # When nearly every turn is disturbed, disturbed turns are all there is.
        if stolen() == before or attempts > 4 * turns:
            for name, seconds in turn.items():
                results[name].append(seconds)
    return Times(results)
