"""examples/: each runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted(Path(__file__).parents[2].joinpath("examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    for package in ("transformers", "diffusers"):
        if f"from {package} import" in path.read_text():
            pytest.importorskip(package, reason=f"pip install {package}")
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_all_are_listed() -> None:
    text = EXAMPLES[0].with_name("README.md").read_text()
    assert len(EXAMPLES) > 3
    for path in EXAMPLES:
        assert f"`{path.name}`" in text
