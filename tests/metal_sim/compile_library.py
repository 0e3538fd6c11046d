"""Compile a Metal source file into a shared object for the executor.

Run by the simulated `newLibraryWithSource:` as a program of its own. Prints the path of the shared
object; on failure prints what is wrong to stderr and returns 1. Results are kept in the cache,
under a name made of everything that goes into them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from translator import cpp_backend, edits, msl

from . import toolchain
from .builder import locked

# What Apple's compiler calls source that came as a string.
DEFAULT_DISPLAY_NAME = "program_source"

# Kernels per compiler run: libraries are compiled in parts, side by side.
KERNELS_PER_PART = 20

# -fsanitize=thread: calls in front of every access, answered by instrumentation.cpp. Reads that a
# write to the same place follows count too, and accesses must keep a size that the pass knows, so
# there is no vectorization.
COMPILE_FLAGS = [
    "-std=c++17",
    "-O1",
    "-gdwarf-4",
    "-gline-tables-only",
    "-fdebug-compilation-dir=.",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-mllvm",
    "-inline-threshold=1000",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-fsanitize=thread",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
    "-fsanitize=alignment,bounds,integer-divide-by-zero,shift",
    # MSL has no double: 1.0 is a float.
    "-Xclang",
    "-cl-single-precision-constant",
    "-Wno-user-defined-literals",
    "-Wno-reserved-user-defined-literal",
    "-Wno-duplicate-decl-specifier",
    "-Wno-ignored-attributes",
    "-Wno-unknown-attributes",
    "-Wno-gnu-anonymous-struct",
    "-Wno-nested-anon-types",
]

# Those calls are answered under names of our own, so that a shader never reaches the runtime of a
# sanitizer that the whole process runs under.
ANSWERED = [
    f"__tsan_{access}{size}"
    for access in ("read", "write", "unaligned_read", "unaligned_write")
    for size in (1, 2, 4, 8, 16)
]
ANSWERED += [f"__tsan_{name}" for name in ("init", "memcpy", "memmove", "memset")]
ANSWERED += [
    f"__ubsan_handle_{name}"
    for name in ("type_mismatch_v1", "out_of_bounds", "divrem_overflow", "shift_out_of_bounds")
]
LINK_FLAGS = ["-shared", "-lm", *(f"-Wl,--wrap={name}" for name in ANSWERED)]


class CompilationError(Exception):
    """The C++ compiler rejected a translated shader."""


def _simulator_headers() -> list[Path]:
    folders = (toolchain.PACKAGE / "msl", msl.TYPES)
    headers = [path for folder in folders for path in sorted(folder.glob("*.h"))]
    return [*headers, toolchain.PACKAGE / "executor" / "kernel_abi.h"]


def cache_key(preprocessed: str) -> str:
    """Hash of all that decides what a compiled library looks like."""
    digest = hashlib.sha256()
    parts = [preprocessed, toolchain.compiler_version(), *COMPILE_FLAGS, *LINK_FLAGS]
    parts.append(str(KERNELS_PER_PART))
    parts += [path.read_text() for path in _simulator_headers()]
    parts += [Path(module.__file__ or "").read_text() for module in (msl, edits, cpp_backend)]
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _readable(messages: str) -> str:
    """Compiler messages with the names that the simulator made up taken out."""
    return re.sub(r"^<stdin>:", "generated code:", messages, flags=re.MULTILINE).strip()


def _run_compiler(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise CompilationError(_readable(result.stderr))


def compile_source(
    source: Path,
    runtime: Path,
    include_dirs: Sequence[Path] = (),
    defines: Sequence[str] = (),
    display_name: str = DEFAULT_DISPLAY_NAME,
) -> Path:
    """Translate and compile; returns the shared object (from the cache when it is there).

    runtime is the simulator's own library, which the result is linked against.
    """
    text = msl.preprocess(source, [toolchain.compiler()], include_dirs, defines, display_name)
    program = msl.parse(text)
    folder = toolchain.cache_dir() / "shaders"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{cache_key(text)}.so"
    with locked(target.with_suffix(".lock")):  # processes that want the same one
        if not target.exists():
            _compile_parts(program, runtime, target)
    return target


def _compile_parts(program: msl.Program, runtime: Path, target: Path) -> None:
    names = [name for name, _, _ in program.entry_points()]
    parts = [names[i : i + KERNELS_PER_PART] for i in range(0, len(names), KERNELS_PER_PART)] or [
        []
    ]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch_name:
        scratch = Path(scratch_name)
        folders = (toolchain.PACKAGE / "msl", msl.TYPES, toolchain.PACKAGE / "executor")
        include = [f"-I{folder}" for folder in folders]

        def compile_part(number: int) -> Path:
            generated = scratch / f"part{number}.cpp"
            generated.write_text(cpp_backend.generate(program, parts[number]))
            compiled = generated.with_suffix(".o")
            _run_compiler(
                [toolchain.compiler(), *COMPILE_FLAGS, *include, "-c", str(generated)]
                + ["-o", str(compiled)]
            )
            return compiled

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_part, range(len(parts))))
        linked = scratch / "library.so"
        _run_compiler(
            [toolchain.compiler(), "-o", str(linked), *map(str, objects), str(runtime), *LINK_FLAGS]
        )
        linked.rename(target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--runtime", type=Path, required=True)
    parser.add_argument("-I", dest="include_dirs", type=Path, action="append", default=[])
    parser.add_argument("-D", dest="defines", action="append", default=[])
    parser.add_argument("--display-name", default=DEFAULT_DISPLAY_NAME)
    options = parser.parse_args(arguments)
    try:
        path = compile_source(
            options.source,
            options.runtime,
            options.include_dirs,
            options.defines,
            options.display_name,
        )
    except (msl.TranslationError, CompilationError, toolchain.MissingTool) as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
