"""What torch_mlxnorm/_C is compiled from. setup.py records a digest of it; `make build` builds, and
tests refuse an extension, when that is not the digest of the files that are there now.

    python tools/sources.py  # whether the _C of this checkout is of its sources, for this Python
"""

from __future__ import annotations

import hashlib
import re
import runpy
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".cpp", ".h", ".metal", ".mm", ".py"}


def compiled(root: Path = ROOT) -> set[Path]:
    """On a Mac shaders are compiled in. Elsewhere headers of theirs are that C++ sources include,
    and csrc/mps is left to the simulator."""
    macos = sys.platform == "darwin"
    found = {root / "setup.py"}
    queue = [*(root / "csrc").rglob("*"), *((root / "shaders").rglob("*") if macos else [])]
    queue = [path for path in queue if macos or "mps" not in path.relative_to(root).parts]
    while queue:
        path = queue.pop().resolve()
        if path.suffix in SUFFIXES and path.is_file() and path not in found:
            found.add(path)
            included = re.findall(r'^\s*#include "(.+)"', path.read_text(), re.MULTILINE)
            queue += [path.parent / name for name in included]
    return found


def digest(root: Path = ROOT) -> str:
    root = root.resolve()
    total = hashlib.sha256()
    for path in sorted(compiled(root)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def is_current(package: Path = ROOT / "torch_mlxnorm") -> bool:
    """Whether the extension of a package, installed or not, is of this tree and for this Python."""
    record = package / "_build.py"
    built = runpy.run_path(str(record)) if record.exists() else {}
    name = built.get("EXTENSION", "")
    loadable = name in [f"_C{suffix}" for suffix in EXTENSION_SUFFIXES]
    return loadable and (package / name).exists() and built.get("SOURCES") == digest()


if __name__ == "__main__":
    sys.exit(not is_current())
