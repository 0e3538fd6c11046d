"""CUDA's run-time compiler, of PyPI's nvidia-cuda-nvrtc or of a toolkit: it needs no GPU."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from .msl import TYPES

FLAGS = (
    "-std=c++17",
    "-default-device",  # functions of a shader are device functions
    "-fmad=false",  # as the simulator computes: one rounding for each operation
    "-lineinfo",
    "-diag-suppress=161",  # #pragma METAL
    f"-I{TYPES}",
)


MAX_BUFFERS = 31  # of a Metal kernel


class MissingTool(RuntimeError):
    """There is no NVRTC; the text names the package."""


class CompilationError(Exception):
    """What NVRTC says."""


def _candidates() -> Iterator[str]:
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        yield from map(str, sorted(Path(folder).glob("*/lib/libnvrtc.so.*[0-9]")))
    if found := ctypes.util.find_library("nvrtc"):
        yield found
    for folder in ("/usr/local/cuda/lib64", "/opt/cuda/lib64"):
        yield from map(str, sorted(Path(folder).glob("libnvrtc.so.*")))


@functools.cache
def library() -> ctypes.CDLL:
    for path in _candidates():
        if "builtins" not in path and "alt" not in path:
            return ctypes.CDLL(path)
    raise MissingTool("libnvrtc was not found: pip install nvidia-cuda-nvrtc")


def version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def _check(result: int) -> None:
    if result != 0:
        text = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)(("nvrtcGetErrorString", library()))
        raise CompilationError((text(result) or b"").decode())


def _bytes_of(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(getattr(library(), f"nvrtcGet{what}")(program, data))
    return data.raw


def compile_cubin(
    source: str,
    architecture: str,
    *,
    defines: Sequence[str] = (),
    buffers: int = MAX_BUFFERS,
    bytes_buffer: int = -1,
    size: int = 16,
) -> bytes:
    """Machine code. architecture: "sm_90". bytes_buffer: the index of what is passed as bytes, and
    its size, a multiple of 16."""
    flags = [*FLAGS, f"-arch={architecture}", f"-DSIM_BUFFERS={buffers}"]
    flags += [f"-DSIM_BYTES_BUFFER={bytes_buffer}", f"-DSIM_BYTES={size}"]
    options = [flag.encode() for flag in itertools.chain(flags, (f"-D{d}" for d in defines))]
    program = ctypes.c_void_p()
    create = library().nvrtcCreateProgram
    _check(create(ctypes.byref(program), source.encode(), b"shader.cu", 0, None, None))
    try:
        array = (ctypes.c_char_p * len(options))(*options)
        if library().nvrtcCompileProgram(program, len(options), array) != 0:
            raise CompilationError(_bytes_of(program, "ProgramLog").rstrip(b"\0").decode())
        return _bytes_of(program, "CUBIN")
    finally:
        library().nvrtcDestroyProgram(ctypes.byref(program))
