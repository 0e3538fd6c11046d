"""Loads ``_C``, which registers the operators, or says why it does not load and what to do."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
from pathlib import Path

import torch  # the extension needs its libraries

from torch_mlxnorm._version import __version__

OLDEST_TORCH = (2, 8)
_PACKAGE = Path(__file__).parent
_REBUILD = (
    "To build it, in the folder of its source:\n"
    "    pip install --no-build-isolation --no-deps --force-reinstall ."
)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


def _load() -> None:
    running = str(torch.__version__)
    if _release(running) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"torch_mlxnorm {__version__} needs PyTorch {oldest} or later, this is {running}"
        )

    found = sorted(name for name in os.listdir(_PACKAGE) if name.startswith("_C."))
    if not found:
        raise ImportError(f"torch_mlxnorm._C has not been built. {_REBUILD}")
    loadable = [f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    if not set(found) & set(loadable):
        raise ImportError(
            f"torch_mlxnorm._C was built for another Python or platform: found {', '.join(found)}, "
            f"this Python loads {loadable[0]}. {_REBUILD}"
        )

    # Written by setup.py, for the Python that it last ran with. An extension without a record may
    # be of anything.
    try:
        built = vars(importlib.import_module("torch_mlxnorm._build"))
    except ModuleNotFoundError:
        built = {}
    if built.get("EXTENSION") not in loadable:
        built = {}
    version, torch_version = built.get("VERSION", __version__), built.get("TORCH", running)
    if version != __version__:
        raise ImportError(
            f"torch_mlxnorm._C is of version {version}, the Python files beside it are of "
            f"{__version__}. {_REBUILD}"
        )
    mismatch = f"torch_mlxnorm._C was built for PyTorch {torch_version}, this is {running}"
    # PyTorch's C++ classes change from one minor release to the next: loaded all the same, the
    # extension could crash. Within one, and for other builds of it, whether it loads is the test.
    if _release(torch_version) != _release(running):
        raise ImportError(f"{mismatch}. {_REBUILD}")
    try:
        importlib.import_module("torch_mlxnorm._C")
    except ImportError as error:
        reason = mismatch if torch_version != running else "torch_mlxnorm._C does not load"
        raise ImportError(f"{reason}: {error}\n{_REBUILD}") from error


_load()
