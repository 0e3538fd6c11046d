"""What only a checkout has: the packages in tests/ that stand in for a Mac's GPU."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType


def from_tests(package: str, who: str) -> ModuleType:
    """Imports it; `who` is told of in the message if there is no checkout."""
    tests = Path(__file__).resolve().parents[1] / "tests"
    if not (tests / package).is_dir():
        sys.exit(
            f"{who} needs a checkout of torch_mlxnorm, installed with `pip install -e .`: "
            f"{tests / package} does not exist"
        )
    if str(tests) not in sys.path:
        sys.path.insert(0, str(tests))
    return importlib.import_module(package)
