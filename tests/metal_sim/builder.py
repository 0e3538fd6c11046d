"""Incremental builds of shared objects: one object per source, rebuilt when something changed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import toolchain


class BuildError(RuntimeError):
    """The compiler or linker failed; the text holds its messages."""


@dataclass(frozen=True)
class Target:
    """A shared object and how its sources are compiled."""

    name: str
    sources: Sequence[Path]
    compile_flags: Sequence[str]
    link_flags: Sequence[str]
    # Files that are linked in; a newer one makes the target stale.
    libraries: Sequence[Path] = field(default=())
    # More compile flags, by the name of a source's folder.
    folder_flags: Mapping[str, Sequence[str]] = field(default_factory=dict)


def build(target: Target) -> Path:
    """Bring a target up to date and return its path. Safe with several processes at work."""
    # Installations of PyTorch that take turns must not rebuild each other's objects.
    variant = _hash([*target.compile_flags, *target.link_flags])[:8]
    folder = toolchain.cache_dir() / "build" / f"{target.name}-{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda s: _compile(target, s, folder), target.sources))
        return _link(target, objects, folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{result.stderr}")
    if result.stderr:
        print(result.stderr)


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _is_current(output: Path, stamp: Path, key: str, inputs: Sequence[Path]) -> bool:
    """Whether `output` was made with this key from inputs that have not changed since."""
    if not output.exists() or not stamp.exists() or stamp.read_text() != key:
        return False
    made = output.stat().st_mtime_ns
    return all(path.exists() and path.stat().st_mtime_ns <= made for path in inputs)


def _dependencies(depfile: Path) -> list[Path]:
    """The files that a compiler-written makefile rule names."""
    if not depfile.exists():
        return [depfile]  # missing, so never current
    _, _, rule = depfile.read_text().partition(": ")
    names = rule.replace("\\\n", " ").replace("\\ ", "\0").split()
    return [Path(name.replace("\0", " ")) for name in names]


def _compile(target: Target, source: Path, folder: Path) -> Path:
    stem = f"{source.stem}-{_hash([str(source)])[:8]}"
    output, stamp, depfile = (folder / f"{stem}{suffix}" for suffix in (".o", ".stamp", ".d"))
    flags = [*target.compile_flags, *target.folder_flags.get(source.parent.name, ())]
    command = [toolchain.compiler(), *flags, "-MD", "-MF", str(depfile)]
    command += ["-c", str(source), "-o", str(output)]
    key = _hash([toolchain.compiler_version(), *command])
    if not _is_current(output, stamp, key, _dependencies(depfile)):
        stamp.unlink(missing_ok=True)
        _run(command)
        stamp.write_text(key)
    return output


def _link(target: Target, objects: Sequence[Path], folder: Path) -> Path:
    output = folder / f"lib{target.name}.so"
    stamp = folder / "link.stamp"
    inputs = [*objects, *target.libraries]
    arguments = [*map(str, inputs), *target.link_flags, f"-Wl,-soname,{output.name}"]
    key = _hash([toolchain.compiler_version(), *arguments])
    if not _is_current(output, stamp, key, inputs):
        stamp.unlink(missing_ok=True)
        # Another process may have the old file mapped: make a new one and put it in its place.
        fresh = output.with_suffix(f".{os.getpid()}.so")
        _run([toolchain.compiler(), *arguments, "-o", str(fresh)])
        fresh.replace(output)
        stamp.write_text(key)
    return output
