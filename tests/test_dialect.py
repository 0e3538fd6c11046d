"""The shaders keep to Metal's dialect of C++, as far as clang can tell."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import dialect
import pytest
from beside import PROCESSORS, beside, run, side_by_side

from tools import planted_mistake, require
from torch_mlxnorm.bench import plain

TESTS = Path(__file__).resolve().parent
SHADERS = TESTS.parent / "shaders"
SELFTEST = TESTS / "dialect" / "selftest"

require(dialect.COMPILER, "Debian clang-19")


PRODUCT = sorted(SHADERS.glob("*.metal"))
PLAIN = plain.SHADER.name  # a text that its user prefixes with definitions
CORRECT = SELFTEST / "correct.metal"
OPS = SELFTEST.parents[1] / "metal_sim" / "selftest" / "ops.metal"
MISTAKES = sorted(set(SELFTEST.glob("*.metal")) - {CORRECT})

CHECK = """
import json, sys
from pathlib import Path
import dialect
print(json.dumps({path: dialect.check(Path(path)) for path in sys.argv[1:]}))
"""


@beside
def found() -> dict[str, list[str]]:
    """In every file: large syntax trees, which other processes read."""
    files = [str(path) for path in (*PRODUCT, CORRECT, OPS, *MISTAKES)]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, PLAIN)
        whole.write_text(plain.source(READS=2, WRITES=3, PER_THREAD=4))
        results = checked([*files, str(whole)])
    return {path if path in files else PLAIN: errors for path, errors in results.items()}


def checked(files: list[str]) -> dict[str, list[str]]:
    def check(i: int) -> dict[str, list[str]]:
        command = [sys.executable, "-c", CHECK, *files[i::PROCESSORS]]
        done = run(command, environment={"PYTHONPATH": str(TESTS)})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return {k: v for part in side_by_side(check, range(PROCESSORS)) for k, v in part.items()}


def test_plain_shader_keeps_to_the_dialect(found: dict[str, list[str]]) -> None:
    assert not found[PLAIN]


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: path.name)
def test_shader_keeps_to_the_dialect(path: Path, found: dict[str, list[str]]) -> None:
    assert not found[str(path)]


# ---- the check itself: a correct file passes, planted mistakes are found on their line -----------


@pytest.mark.parametrize("path", [CORRECT, OPS], ids=lambda path: path.stem)
def test_correct_file_passes(path: Path, found: dict[str, list[str]]) -> None:
    assert not found[str(path)]


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_mistake_is_found(path: Path, found: dict[str, list[str]]) -> None:
    assert re.search(planted_mistake(path), "\n".join(found[str(path)]))
