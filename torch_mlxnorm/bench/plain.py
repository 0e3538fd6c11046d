"""A plain kernel with as many reads and writes as an op: the limit that memory sets."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_mlxnorm._checkout import from_tests

SHADER = Path(__file__).with_name("plain.metal")
WORD = 16

# Words a thread and threads of a threadgroup: the fastest counts.
GEOMETRIES = [(1, 256), (2, 256), (4, 256), (1, 1024)]

Kernel = Callable[[Tensor, Tensor], object]


class Streams:
    """Equal planes of memory: one written for each result, and as many read for each as an op
    reads bytes for one that it writes. Together they have about the op's bytes."""

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
        yield cpu_kernel(streams)
        return
    for per_thread, threads in GEOMETRIES:
        make = metal_kernel if device == "mps" else cuda_kernel
        yield make(streams, per_thread, threads)


@functools.cache
def cpu_function(reads: int, writes: int) -> Any:
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    native = [] if sys.platform == "darwin" else ["-march=native"]  # NEON is there anyway
    source = Path(__file__).with_name("plain.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "plain.so")
        flags = ["-O3", *native, "-shared", "-fPIC", f"-DREADS={reads}", f"-DWRITES={writes}"]
        subprocess.run([*compiler, *flags, source, "-o", library], check=True)
        function = ctypes.CDLL(str(library)).plain
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    function.restype = None
    return function


def cpu_kernel(streams: Streams) -> Kernel:
    function, count = cpu_function(streams.reads, streams.writes), streams.words * WORD // 8
    return lambda read, written: function(read.data_ptr(), written.data_ptr(), count)


def defines(streams: Streams, per_thread: int) -> dict[str, int]:
    return {"READS": streams.reads, "WRITES": streams.writes, "PER_THREAD": per_thread}


def source(**defines: int) -> str:
    lines = (f"#define {name} {value}\n" for name, value in defines.items())
    return "".join(lines) + SHADER.read_text()


@functools.cache
def metal_library(**defines: int) -> Any:
    return torch.mps.compile_shader(source(**defines))


def metal_kernel(streams: Streams, per_thread: int, threads: int) -> Kernel:
    library = metal_library(**defines(streams, per_thread))
    count = math.ceil(streams.words / (per_thread * threads)) * threads
    return lambda read, written: library.plain(
        read, written, streams.words, threads=count, group_size=threads
    )


@functools.cache
def cuda_dispatch(**defines: int) -> Any:
    gpu = from_tests("gpu", "--device cuda")
    return gpu.kernel(SHADER, "plain", [f"{name}={value}" for name, value in defines.items()])


def cuda_kernel(streams: Streams, per_thread: int, threads: int) -> Kernel:
    dispatch = cuda_dispatch(**defines(streams, per_thread))
    threadgroups = math.ceil(streams.words / (per_thread * threads))
    return lambda read, written: dispatch([read, written], streams.words, threadgroups, threads)
