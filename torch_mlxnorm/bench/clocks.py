"""How calls are timed on a device: candidates take turns in one run."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from torch_mlxnorm._timing import Times, time_interleaved

Call = Callable[[], object]

# What a GPU's last-level cache is small beside.
ROTATED_BYTES = 400 << 20
MOST_COPIES = 64
SECONDS_PER_TURN = 0.002
MOST_LAUNCHES = 1024


def number_of_turns(text: str) -> int:
    """An argument."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"at least 2 for quartiles, not {text!r}")
    return int(text)


def copies(device: str, nbytes: int) -> int:
    """Of a case's tensors, used in rotation so that none of them is in a cache. On the CPU and on
    MPS there is one: calls of a model often find their inputs there."""
    if device != "cuda":
        return 1
    return min(MOST_COPIES, max(2, math.ceil(ROTATED_BYTES / nbytes)))


def measure(
    device: str,
    candidates: Mapping[str, Sequence[Call]],
    turns: int,
    wait: Callable[[], object],
) -> Times:
    """Of each candidate, the same call on each of the copies."""
    if device == "cuda":
        return time_graphs(candidates, turns)
    firsts = {name: calls[0] for name, calls in candidates.items()}
    return time_interleaved(firsts, wait=wait, turns=turns)


def time_graphs(candidates: Mapping[str, Sequence[Call]], turns: int) -> Times:
    """As CUDA graphs of many launches, so that the host plays no part; by the GPU's clock."""
    graphs = {name: Graph(calls) for name, calls in candidates.items()}
    names = list(graphs)
    results: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            graphs[name].start()
        torch.cuda.synchronize()
        for name in names:
            results[name].append(graphs[name].seconds())
    return Times(results)


class Graph:
    def __init__(self, calls: Sequence[Call]) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for call in calls:
                call()  # compiles, warms up
            self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._begin.record()
            for call in calls:
                call()
            self._end.record()
            stream.synchronize()
        once = self._begin.elapsed_time(self._end) / 1e3 / len(calls)
        rounds = math.ceil(SECONDS_PER_TURN / once / len(calls))
        rounds = max(1, min(rounds, MOST_LAUNCHES // len(calls)))
        self._launches = rounds * len(calls)
        self._graph = torch.cuda.CUDAGraph()
        # Kept, so that each call has memory of its own, as with outs.
        self._results: list[object] = []
        with torch.cuda.graph(self._graph, stream=stream):
            for _ in range(rounds):
                self._results += [call() for call in calls]
        self._graph.replay()
        torch.cuda.synchronize()

    def start(self) -> None:
        self._begin.record()
        self._graph.replay()
        self._end.record()

    def seconds(self) -> float:
        return self._begin.elapsed_time(self._end) / 1e3 / self._launches
