"""The extension that is tested must be that of the sources beside the tests."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

SOURCES = runpy.run_path(str(Path(__file__).parents[1] / "tools/sources.py"))


def require_this_tree() -> None:
    """Ends the process otherwise. Looks for the package, but does not load it: a simulated device
    has to come first."""
    spec = importlib.util.find_spec("torch_mlxnorm")
    if spec is None or spec.origin is None:
        return  # the import says so
    package = Path(spec.origin).parent
    if any(package.glob("_C.*")) and not SOURCES["is_current"](package):
        sys.exit(f"{package}/_C was not built from the sources beside these tests: make build")
