"""Tests refuse an extension of other sources (tools/sources.py, built.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from built import SOURCES
from darwin import ROOT, touch

import torch_mlxnorm

PACKAGE = Path(torch_mlxnorm.__file__).parent
ON_MAC = sys.platform == "darwin"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """This one, installed elsewhere."""
    ignore = shutil.ignore_patterns("_C.*", "__pycache__")
    package = Path(shutil.copytree(PACKAGE, tmp_path / "torch_mlxnorm", ignore=ignore))
    for extension in PACKAGE.glob("_C.*"):
        (package / extension.name).symlink_to(extension)
    return package


def run(package: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=package.parent,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )


def record(package: Path, sources: str) -> None:
    path = package / "_build.py"
    assert path.read_text().count(SOURCES["digest"]()) == 1
    path.write_text(path.read_text().replace(SOURCES["digest"](), sources))


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests/test_readme.py")


@pytest.mark.parametrize(
    "command",
    [PYTEST, *[(ROOT / "tests" / f"{name}.py",) for name in ("fuzz", "stress", "digests")]],
    ids=lambda command: Path(command[-1]).stem,
)
def test_an_extension_of_others_is_refused(command: tuple[str, ...], package: Path) -> None:
    """In one line, before anything of it is loaded."""
    record(package, sources=64 * "0")
    ran = run(package, *command)
    line = f"{package}/_C was not built from the sources beside these tests: make build\n"
    assert (ran.returncode, ran.stdout + ran.stderr) == (1, line)


def test_what_is_current(package: Path) -> None:
    is_current = SOURCES["is_current"]
    assert is_current(package)
    for text, other in [
        (SOURCES["digest"](), 64 * "0"),
        ("SOURCES", "SOURCES_OF_LATER"),
        (torch_mlxnorm._C.__file__.rpartition("/")[2], "_C.cpython-39-x86_64-linux-gnu.so"),
    ]:
        path = package / "_build.py"
        before = path.read_text()
        assert before.count(text) == 1
        path.write_text(before.replace(text, other))
        assert not is_current(package)
        path.write_text(before)
    for extension in package.glob("_C.*"):
        extension.unlink()
    assert not is_current(package)


def test_what_changes_the_digest(tmp_path: Path) -> None:
    """All that is compiled: off a Mac, of the shaders, what the C++ sources include."""
    for folder in ("csrc", "shaders"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "setup.py", tmp_path)
    assert SOURCES["digest"](tmp_path) == SOURCES["digest"]()

    def changes(name: str) -> bool:
        path, before = tmp_path / name, SOURCES["digest"](tmp_path)
        text = path.read_text()
        path.write_text(f"{text}\n")
        after = SOURCES["digest"](tmp_path)
        path.write_text(text)
        assert SOURCES["digest"](tmp_path) == before
        return after != before

    compiled = ["setup.py", "csrc/library.cpp", "csrc/checks.h", "csrc/cpu/isa/rms_norm.cpp"]
    compiled += ["shaders/formulas/rms_norm.h", "shaders/abi.h"]
    for name in compiled:
        assert changes(name), name
    for name in ("shaders/rms_norm.metal", "csrc/mps/plan.cpp", "csrc/mps/pipeline.mm"):
        assert changes(name) == ON_MAC, name

    before = SOURCES["digest"](tmp_path)
    touch(tmp_path, "csrc/another.h")
    assert SOURCES["digest"](tmp_path) != before
