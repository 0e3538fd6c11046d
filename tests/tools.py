"""Shared by the tests of the checking tools: tools that may be missing, planted mistakes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

import torch_mlxnorm


def _missing(tool: str, package: str) -> NoReturn:
    message = f"needs {tool}, which {package} provides"
    if os.environ.get("MLXNORM_REQUIRE_TOOLS") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message, allow_module_level=True)


def require(tool: str, package: str) -> str:
    """The path of a program. Without it tests are skipped; MLXNORM_REQUIRE_TOOLS=1 fails them."""
    path = shutil.which(tool)
    return path if path is not None else _missing(tool, package)


def require_module(module: str, package: str) -> None:
    """The same for a Python module."""
    if importlib.util.find_spec(module) is None:
        _missing(f"the Python module {module}", package)


def require_checkout() -> None:
    """Skips where the package is installed elsewhere: `--sim` looks for tests/ beside it."""
    package = Path(torch_mlxnorm.__file__).parents[1]
    if package != Path(__file__).parents[1]:
        pytest.skip(f"needs an editable install (pip install -e .), the package is in {package}")


def planted_mistake(path: Path) -> str:
    """The diagnostic that a selftest file announces, as a pattern for `file:line: … text`.

    The comment `// error: text` stands above the line at fault.
    """
    ((line, text),) = [
        (number + 1, line.partition("// error: ")[2])
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if "// error: " in line
    ]
    return rf"{re.escape(path.name)}:{line}:.*{re.escape(text)}"
