"""The compiler and libraries that the simulator needs, and the flags that go with them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent.parent
APPLE_HEADERS = PACKAGE.parent / "apple_headers"


class MissingTool(RuntimeError):
    """Something that the simulator needs is not installed; the text names the Debian package."""


def cache_dir() -> Path:
    """Where all that is built goes: $METAL_SIM_CACHE or .cache/metal_sim of the repository."""
    return Path(os.environ.get("METAL_SIM_CACHE", REPOSITORY / ".cache" / "metal_sim"))


@functools.cache
def compiler() -> str:
    """Path of clang++ (version 19 is what the simulator was made with)."""
    for name in (os.environ.get("METAL_SIM_CLANG"), "clang++-19", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise MissingTool("clang++-19 was not found: apt-get install clang-19")


@functools.cache
def compiler_version() -> str:
    result = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[0]


@functools.cache
def gcc_library_dir() -> Path:
    """The folder of GCC 12 that holds GNU's Objective-C headers and library."""
    candidates = sorted(Path("/usr/lib/gcc").glob("*/*/include/objc/runtime.h"))
    if not candidates:
        raise MissingTool("<objc/runtime.h> was not found: apt-get install libobjc-12-dev")
    return candidates[-1].parent.parent.parent


def check() -> None:
    """Raise `MissingTool` unless everything is there."""
    compiler()
    gcc_library_dir()
    if not shutil.which("addr2line"):
        raise MissingTool("addr2line was not found: apt-get install binutils")
    library_dirs = [Path("/usr/lib"), Path("/usr/local/lib"), *Path("/usr/lib").glob("*-linux-gnu")]
    if not any((folder / "libBlocksRuntime.so").exists() for folder in library_dirs):
        raise MissingTool("libBlocksRuntime was not found: apt-get install libblocksruntime-dev")


def objective_cxx_flags() -> list[str]:
    """Flags that compile a .mm file against GNU's runtime and the hand-written Apple headers."""
    return [
        "-x",
        "objective-c++",
        "-std=c++20",
        "-fPIC",
        "-fobjc-runtime=gcc",
        "-fblocks",
        "-fobjc-exceptions",
        "-fconstant-string-class=NSConstantString",
        f"-I{APPLE_HEADERS}",
        f"-I{APPLE_HEADERS / 'linux'}",
        "-idirafter",
        str(gcc_library_dir() / "include"),
    ]


def sanitizer_flags() -> list[str]:
    """For $MLXNORM_SANITIZER (address, undefined or thread), whose runtime the process preloads."""
    kind = os.environ.get("MLXNORM_SANITIZER")
    if not kind:
        return []
    special = {
        # These two want typeinfo that a library with hidden symbols does not share.
        "undefined": ["-fno-sanitize=vptr,function"],
        # GCC 12's runtime has no __tsan_memset; it intercepts memset.
        "thread": ["-mllvm", "-tsan-instrument-memintrinsics=0"],
    }
    return [f"-fsanitize={kind}", *special.get(kind, []), "-fno-omit-frame-pointer"]


def link_flags() -> list[str]:
    return ["-shared", f"-L{gcc_library_dir()}", "-lobjc", "-lBlocksRuntime"]
