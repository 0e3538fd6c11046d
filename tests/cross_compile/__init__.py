"""Compiles the extension's sources for macOS on any machine. See README.md."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
APPLE_HEADERS = TESTS / "apple_headers"
CACHE = TESTS.parent / ".cache" / "cross_compile"
ANALYSES = CACHE / "analyses"
ARM64_HEADERS = TESTS / "cross_compile" / "arm64"
TARGET = "aarch64-macos.14.0"  # setup.py's deployment target: bfloat needs Metal 3.1
FLAGS = (
    "-O1",
    "-g0",
    "-fno-objc-arc",
    "-Wall",
    "-Wunguarded-availability",
    "-Werror=objc-method-access",
    "-Werror=unguarded-availability",
    "-Werror",
)

# Headers of PyTorch whose classes changed layout between releases, or that break without ARC.
FORBIDDEN_HEADERS = re.compile(
    r'^\s*#\s*(?:include|import)\s*[<"][^>"]*'
    r'(OperationUtils\.h|MPSProfiler\.h|MetalShaderLibrary\.h)[>"]'
)


@dataclass(frozen=True)
class Source:
    """A file of the extension, with what setup.py compiles it with."""

    path: Path
    include_dirs: tuple[Path, ...] = ()
    defines: tuple[str, ...] = ()
    standard: str = "c++20"


@dataclass(frozen=True)
class Outcome:
    """Of one compilation: the object file, or why there is none."""

    source: Source
    object: Path | None
    diagnostics: str


def torch_includes(root: Path) -> tuple[Path, ...]:
    """Include folders of PyTorch's headers, `root` being its folder `torch/include`."""
    return (root, root / "torch" / "csrc" / "api" / "include")


def _command(source: Source, torch_include: Path) -> list[str]:
    system = (APPLE_HEADERS, *torch_includes(torch_include))
    if "float32x4_t" not in (torch_include / "sleef.h").read_text():  # a wheel for x86-64
        system = (ARM64_HEADERS, *system)
    return [
        *(sys.executable, "-m", "ziglang", "c++", "-target", TARGET),
        *FLAGS,
        f"-std={source.standard}",
        *(f"-D{define}" for define in source.defines),
        *(f"-I{folder}" for folder in source.include_dirs),
        *(argument for folder in system for argument in ("-isystem", str(folder))),
    ]


def compile_source(source: Source, output: Path, torch_include: Path) -> Outcome:
    # zig cannot do -fsyntax-only, so there is always an object file.
    command = [*_command(source, torch_include), "-c", str(source.path), "-o", str(output)]
    run = subprocess.run(command, capture_output=True, text=True)
    return Outcome(source, output if run.returncode == 0 else None, run.stderr)


def compile_all(
    sources: Sequence[Source], folder: Path, torch_include: Path, jobs: int = 2
) -> list[Outcome]:
    """Compiles into `folder`, which is created; the results come in the order of the sources."""
    folder.mkdir(parents=True, exist_ok=True)
    # Numbered, because sources of the same name lie in different folders.
    outputs = [folder / f"{index}-{source.path.name}.o" for index, source in enumerate(sources)]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compile_source, sources, outputs, [torch_include] * len(sources)))


def retain_count_warnings(source: Source, torch_include: Path) -> list[str]:
    """What clang's static analyzer says about objects leaked or released too often."""
    command = [*_command(source, torch_include), "-Wno-error", "-Wno-unused-command-line-argument"]
    # The analyzer takes its time; what it said of a text is what it says of it.
    text = _run([*command, "-E", str(source.path)]).stdout
    key = "\0".join([version("ziglang"), *command, text])
    said = ANALYSES / f"{hashlib.sha256(key.encode()).hexdigest()}.txt"
    if not said.exists():
        # A cache of its own for each call: zig does not repeat the warnings of a run that it
        # remembers.
        with tempfile.TemporaryDirectory() as folder:
            run = _run(
                [*command, "--analyze", "-c", source.path, "-o", Path(folder, "findings")],
                ZIG_LOCAL_CACHE_DIR=folder,
                ZIG_GLOBAL_CACHE_DIR=folder,
            )
        ANALYSES.mkdir(parents=True, exist_ok=True)
        fresh = said.with_suffix(f".{os.getpid()}")
        fresh.write_text(run.stderr)
        fresh.replace(said)
    lines = said.read_text().splitlines()
    return [line for line in lines if line.endswith("[osx.cocoa.RetainCount]")]


def _run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(run.stderr)
    return run


def forbidden_includes(path: Path) -> Iterator[str]:
    """`file:line: header` for every header that the extension must not include."""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match = FORBIDDEN_HEADERS.match(line)
        if match is not None:
            yield f"{path.name}:{number}: {match[1]}"
