"""Tests accelerate with the oldest and the newest transformers that the extra `models` allows, each
in a folder under .cache/models that is put before the installed one.

    make test-models-versions [VERSIONS="5.0.0 5.22.2"] [PYTEST_ARGS="-k greedy"]

Each takes only certain versions of `kernels`, so that one is hidden;
`tests/models/test_kernels_layers.py` runs with the installed ones.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "models"


def allowed() -> list[str]:
    """The oldest and the newest: what pip finds for the requirement, and what it begins with."""
    text = (ROOT / "pyproject.toml").read_text()
    requirement = re.search(r'"transformers>=([\d.]+),<([\d.]+)"', text)
    assert requirement is not None
    oldest = ".".join([*requirement[1].split("."), "0", "0"][:3])
    return [f"=={oldest}", f"<{requirement[2]}"]


def test(version: str, arguments: list[str]) -> int:
    folder = CACHE / f"transformers{re.sub('[<=]+', '-', version)}"
    if not (folder / "transformers").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
        subprocess.run([*pip, f"transformers{version}"], check=True)
    hidden = CACHE / "hidden/kernels/__init__.py"
    hidden.parent.mkdir(parents=True, exist_ok=True)
    hidden.write_text('raise ImportError("hidden")\n')
    environment = os.environ | {"PYTHONPATH": f"{hidden.parents[1]}{os.pathsep}{folder}"}
    ask = "import transformers; print('transformers', transformers.__version__)"
    subprocess.run([sys.executable, "-c", ask], env=environment, check=True)
    tests = ROOT / "tests/models/test_transformers.py"
    command = [sys.executable, "-m", "pytest", "-q", str(tests), *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


def main(arguments: list[str]) -> int:
    named = os.environ.get("VERSIONS", "").split()
    versions = [f"=={version}" for version in named] or allowed()
    failed = [version for version in versions if test(version, arguments) != 0]
    print(f"failed: {', '.join(failed)}" if failed else f"passed: {', '.join(versions)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
