"""The shaders keep to Metal's dialect of C++, as far as clang can tell."""

from __future__ import annotations

import re
from pathlib import Path

import dialect
import pytest

from tools import planted_mistake, require

SHADERS = Path(__file__).resolve().parents[1] / "shaders"
SELFTEST = Path(__file__).parent / "dialect" / "selftest"

require(dialect.COMPILER, "Debian clang-19")


@pytest.mark.parametrize("path", sorted(SHADERS.glob("*.metal")), ids=lambda path: path.name)
def test_shader_keeps_to_the_dialect(path: Path) -> None:
    assert not dialect.check(path)


# ---- the check itself: a correct file passes, planted mistakes are found on their line -----------

CORRECT = SELFTEST / "correct.metal"
OPS = SELFTEST.parents[1] / "metal_sim" / "selftest" / "ops.metal"
MISTAKES = sorted(set(SELFTEST.glob("*.metal")) - {CORRECT})


@pytest.mark.parametrize("path", [CORRECT, OPS], ids=lambda path: path.stem)
def test_correct_file_passes(path: Path) -> None:
    assert not dialect.check(path)


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_mistake_is_found(path: Path) -> None:
    assert re.search(planted_mistake(path), "\n".join(dialect.check(path)))
