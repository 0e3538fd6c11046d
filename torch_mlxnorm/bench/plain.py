"""A plain kernel with as many reads and writes as an op: the limit that memory sets."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHADER = Path(__file__).with_name("plain.metal")
WORD = 16

# Words and threads of a threadgroup: the fastest counts.
GEOMETRIES = [(1, 256), (2, 256), (4, 256), (1, 1024)]

Kernel = Callable[[Tensor, Tensor], object]


class Streams:
    """Equal planes of memory: `bytes_read` in so many as `bytes_written` are to `results`."""

    def __init__(self, bytes_read: int, bytes_written: int, results: int) -> None:
        self.reads = max(1, round(bytes_read * results / bytes_written))
        self.writes = results
        total = bytes_read + bytes_written
        self.words = max(1, round(total / (self.reads + self.writes) / WORD))

    def tensors(self, device: str) -> tuple[Tensor, Tensor]:
        # Ones: of memory that was never written, a system may have but one page.
        shape = (self.words * WORD // 4,)
        return (
            torch.ones(self.reads, *shape, device=device),
            torch.empty(self.writes, *shape, device=device),
        )


def kernels(streams: Streams, device: str) -> Iterator[Kernel]:
    if device == "cpu":
        yield compiled_by_inductor()
        return
    for per_thread, threads in GEOMETRIES:
        make = metal_kernel if device == "mps" else cuda_kernel
        yield make(streams, per_thread, threads)


@functools.cache
def compiled_by_inductor() -> Kernel:
    def plain(read: Tensor, written: Tensor) -> None:
        total = functools.reduce(torch.add, read.unbind())
        for i in range(written.shape[0]):
            written[i].copy_(total)

    return torch.compile(plain, dynamic=False)


def defines(streams: Streams, per_thread: int) -> dict[str, int]:
    return {"READS": streams.reads, "WRITES": streams.writes, "PER_THREAD": per_thread}


@functools.cache
def metal_library(**defines: int) -> Any:
    lines = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    return torch.mps.compile_shader(lines + SHADER.read_text())


def metal_kernel(streams: Streams, per_thread: int, threads: int) -> Kernel:
    library = metal_library(**defines(streams, per_thread))
    count = math.ceil(streams.words / (per_thread * threads)) * threads
    return lambda read, written: library.plain(
        read, written, streams.words, threads=count, group_size=threads
    )


@functools.cache
def cuda_dispatch(**defines: int) -> Any:
    gpu = importlib.import_module("gpu")  # of a checkout's tests/
    return gpu.kernel(SHADER, "plain", [f"{name}={value}" for name, value in defines.items()])


def cuda_kernel(streams: Streams, per_thread: int, threads: int) -> Kernel:
    dispatch = cuda_dispatch(**defines(streams, per_thread))
    threadgroups = math.ceil(streams.words / (per_thread * threads))
    return lambda read, written: dispatch([read, written], streams.words, threadgroups, threads)
