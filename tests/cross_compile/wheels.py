"""PyTorch's macOS wheels, whose headers and libraries the extension meets on a Mac."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from .symbols import exported_symbols

VERSIONS = ("2.8.0", "2.13.0", "2.15.0")
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "macos-torch"

# What an extension is linked with.
LIBRARIES = ("libc10", "libtorch_cpu", "libtorch", "libtorch_python")


def fetch(version: str) -> Path:
    """The wheel of a version, downloaded once (about 110 MB)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    platforms = ("macosx_14_0_arm64", "macosx_11_0_arm64")
    if not (wheels := list(CACHE.glob(f"torch-{version}-*.whl"))):
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"),
                *(argument for platform in platforms for argument in ("--platform", platform)),
                *("--dest", str(CACHE), f"torch=={version}"),
            ],
            check=True,
        )
        wheels = list(CACHE.glob(f"torch-{version}-*.whl"))
    return wheels[0]


def unpack(version: str) -> Path:
    """The version's folder `torch`, of what an extension is built with."""
    folder = CACHE / version
    if not (folder / "torch/version.py").exists():
        wanted = ("torch/include/", "torch/lib/", "torch/version.py")
        with zipfile.ZipFile(fetch(version)) as wheel:
            names = [name for name in wheel.namelist() if name.startswith(wanted)]
            wheel.extractall(folder, sorted(names))  # version.py last
    return folder / "torch"


def headers(version: str) -> Path:
    """The version's `torch/include`."""
    return unpack(version) / "include"


def exports(version: str) -> set[str]:
    """Everything that the version's libraries export."""
    with zipfile.ZipFile(fetch(version)) as wheel:
        return set().union(
            *(exported_symbols(wheel.read(f"torch/lib/{name}.dylib")) for name in LIBRARIES)
        )
