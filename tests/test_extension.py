"""`import torch_mlxnorm` where the extension does not fit: what is wrong, and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import torch_mlxnorm

PACKAGE = Path(torch_mlxnorm.__file__).parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
COMMAND = "pip install --no-build-isolation --no-deps --force-reinstall ."
HERE = torch.__version__


def record(torch_version: str, version: str = torch_mlxnorm.__version__) -> str:
    return f'EXTENSION = "_C{SUFFIX}"\nTORCH = "{torch_version}"\nVERSION = "{version}"\n'


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The Python files alone."""
    ignore = shutil.ignore_patterns("_C*", "_build.py", "__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "torch_mlxnorm", ignore=ignore))


def with_extension(package: Path, text: str) -> None:
    (package / f"_C{SUFFIX}").symlink_to(PACKAGE / f"_C{SUFFIX}")
    (package / "_build.py").write_text(text)


def error(package: Path, before: str = "pass") -> str:
    """Of an import in a process of its own; empty when it works."""
    statement = f"import torch; {before}; import torch_mlxnorm; torch.ops.mlxnorm.rms_norm.default"
    run = subprocess.run(
        [sys.executable, "-c", statement],
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        cwd=package.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Traceback" in run.stderr if run.returncode else not run.stderr
    return run.stderr


def test_an_extension_that_fits(package: Path) -> None:
    with_extension(package, record(HERE))
    assert error(package) == ""


def test_without_a_record(package: Path) -> None:
    """As an extension of elsewhere: whether it loads is the test."""
    with_extension(package, "")
    (package / "_build.py").unlink()
    assert error(package) == ""


def test_a_record_of_another_pythons_extension(package: Path) -> None:
    """Of a checkout that was built for two: the record is the last one's."""
    with_extension(package, record("2.99.0").replace(SUFFIX, ".cpython-39-x86_64-linux-gnu.so"))
    (package / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    assert error(package) == ""


def test_never_built(package: Path) -> None:
    said = error(package)
    assert "ImportError: torch_mlxnorm._C has not been built." in said and COMMAND in said


def test_another_python_or_platform(package: Path) -> None:
    name = "_C.cpython-39-darwin.so"
    (package / name).touch()
    said = error(package)
    assert "was built for another Python or platform" in said and COMMAND in said
    assert f"found {name}, this Python loads _C{SUFFIX}" in said


@pytest.mark.parametrize("other", ["2.8.0", "3.0.0a0+git1234567"])
def test_another_pytorch(other: str, package: Path) -> None:
    """Refused before it is loaded, so that the loader need not find the symbol that is missing."""
    if other.split(".")[:2] == HERE.split(".")[:2]:
        other = "2.9.1"
    with_extension(package, record(other))
    said = error(package)
    assert f"built for PyTorch {other}, this is {HERE}" in said and COMMAND in said


def test_another_build_of_the_same_release(package: Path) -> None:
    """Loads if it can."""
    with_extension(package, record(HERE.split("+")[0] + "+cu999"))
    assert error(package) == ""


def test_an_undefined_symbol(package: Path, tmp_path: Path) -> None:
    """Of an extension for a patch release: the loader's words, and both versions."""
    source = tmp_path / "source.cpp"
    source.write_text("extern int of_another_pytorch; int* use() { return &of_another_pytorch; }")
    compiler = os.environ.get("CXX", "c++").split()
    command = [*compiler, "-shared", "-fPIC", source, "-o", package / f"_C{SUFFIX}"]
    command += ["-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else []
    subprocess.run(command, check=True)
    said = error(package)
    assert "torch_mlxnorm._C does not load: " in said and "of_another_pytorch" in said

    other = ".".join([*HERE.split(".")[:2], "99"])
    (package / "_build.py").write_text(record(other))
    said = error(package)
    assert f"torch_mlxnorm._C was built for PyTorch {other}, this is {HERE}: " in said
    assert "of_another_pytorch" in said and COMMAND in said


def test_an_extension_of_another_version(package: Path) -> None:
    with_extension(package, record(HERE, version="0.0.9"))
    said = error(package)
    ours = torch_mlxnorm.__version__
    assert f"_C is of version 0.0.9, the Python files beside it are of {ours}" in said
    assert COMMAND in said


def test_an_old_pytorch(package: Path) -> None:
    with_extension(package, record(HERE))
    said = error(package, before="torch.__version__ = '2.7.1+cpu'")
    assert "needs PyTorch 2.8 or later, this is 2.7.1+cpu" in said


def test_this_build_has_a_record() -> None:
    import torch_mlxnorm._build as build

    assert build.EXTENSION == f"_C{SUFFIX}"
    assert (build.TORCH, build.VERSION) == (str(HERE), torch_mlxnorm.__version__)
