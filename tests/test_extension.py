"""`import torch_mlxnorm` where the extension does not fit: what is wrong, and what to do."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from beside import beside, run, run_programs
from forked import Program

import torch_mlxnorm

PACKAGE = Path(torch_mlxnorm.__file__).parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
COMMAND = "pip install --no-build-isolation --no-deps --force-reinstall ."
HERE = torch.__version__
OURS = torch_mlxnorm.__version__
PATCH_RELEASE = ".".join([*HERE.split(".")[:2], "99"])
OTHERS = [
    "2.9.1" if other.split(".")[:2] == HERE.split(".")[:2] else other
    for other in ("2.8.0", "3.0.0a0+git1234567")
]


def record(torch_version: str, version: str = OURS) -> str:
    return f'EXTENSION = "_C{SUFFIX}"\nTORCH = "{torch_version}"\nVERSION = "{version}"\n'


def with_extension(package: Path, text: str) -> None:
    (package / f"_C{SUFFIX}").symlink_to(PACKAGE / f"_C{SUFFIX}")
    (package / "_build.py").write_text(text)


def without_a_record(package: Path) -> None:
    (package / f"_C{SUFFIX}").symlink_to(PACKAGE / f"_C{SUFFIX}")


def another_pythons_record(package: Path) -> None:
    with_extension(package, record("2.99.0").replace(SUFFIX, ".cpython-39-x86_64-linux-gnu.so"))
    (package / "_C.cpython-39-x86_64-linux-gnu.so").touch()


def undefined_symbol(package: Path) -> None:
    source = package / "source.cpp"
    source.write_text("extern int of_another_pytorch; int* use() { return &of_another_pytorch; }")
    compiler = os.environ.get("CXX", "c++").split()
    command = [*compiler, "-shared", "-fPIC", source, "-o", package / f"_C{SUFFIX}"]
    command += ["-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else []
    assert run(command).returncode == 0


def undefined_symbol_and_record(package: Path) -> None:
    undefined_symbol(package)
    (package / "_build.py").write_text(record(PATCH_RELEASE))


# What is done to the Python files alone.
PACKAGES: dict[str, Callable[[Path], object]] = {
    "never built": lambda package: None,
    "fits": lambda package: with_extension(package, record(HERE)),
    "no record": without_a_record,
    "another Python's record": another_pythons_record,
    "another Python": lambda package: (package / "_C.cpython-39-darwin.so").touch(),
    **{
        other: lambda package, other=other: with_extension(package, record(other))
        for other in OTHERS
    },
    "another build": lambda package: with_extension(package, record(HERE.split("+")[0] + "+cu999")),
    "undefined symbol": undefined_symbol,
    "undefined symbol, record": undefined_symbol_and_record,
    "another version": lambda package: with_extension(package, record(HERE, version="0.0.9")),
    "old PyTorch": lambda package: with_extension(package, record(HERE)),
}
BEFORE = {"old PyTorch": "torch.__version__ = '2.7.1+cpu'"}


@beside
def said() -> dict[str, str]:
    """By an import in each package, in a process of its own; nothing when it works."""
    ignore = shutil.ignore_patterns("_C*", "_build.py", "__pycache__")
    with tempfile.TemporaryDirectory() as folder:
        programs = []
        for i, (name, change) in enumerate(PACKAGES.items()):
            parent = f"{folder}/{i}"
            change(Path(shutil.copytree(PACKAGE, f"{parent}/torch_mlxnorm", ignore=ignore)))
            code = f"import torch; {BEFORE.get(name, 'pass')}; import torch_mlxnorm; "
            code += "torch.ops.mlxnorm.rms_norm.default"
            programs.append(Program(code, folder=parent, path=[parent]))
        runs = run_programs(programs)
    for done in runs:
        assert "Traceback" in done.stderr if done.returncode else not done.stderr
    return dict(zip(PACKAGES, [done.stderr for done in runs], strict=True))


def test_an_extension_that_fits(said: dict[str, str]) -> None:
    assert said["fits"] == ""


def test_without_a_record(said: dict[str, str]) -> None:
    """As an extension of elsewhere: whether it loads is the test."""
    assert said["no record"] == ""


def test_a_record_of_another_pythons_extension(said: dict[str, str]) -> None:
    """Of a checkout that was built for two: the record is the last one's."""
    assert said["another Python's record"] == ""


def test_never_built(said: dict[str, str]) -> None:
    text = said["never built"]
    assert "ImportError: torch_mlxnorm._C has not been built." in text and COMMAND in text


def test_another_python_or_platform(said: dict[str, str]) -> None:
    text = said["another Python"]
    assert "was built for another Python or platform" in text and COMMAND in text
    assert f"found _C.cpython-39-darwin.so, this Python loads _C{SUFFIX}" in text


@pytest.mark.parametrize("other", OTHERS)
def test_another_pytorch(other: str, said: dict[str, str]) -> None:
    """Refused before it is loaded, so that the loader need not find the symbol that is missing."""
    assert f"built for PyTorch {other}, this is {HERE}" in said[other] and COMMAND in said[other]


def test_another_build_of_the_same_release(said: dict[str, str]) -> None:
    """Loads if it can."""
    assert said["another build"] == ""


def test_an_undefined_symbol(said: dict[str, str]) -> None:
    """Of an extension for a patch release: the loader's words, and both versions."""
    text = said["undefined symbol"]
    assert "torch_mlxnorm._C does not load: " in text and "of_another_pytorch" in text
    text = said["undefined symbol, record"]
    assert f"torch_mlxnorm._C was built for PyTorch {PATCH_RELEASE}, this is {HERE}: " in text
    assert "of_another_pytorch" in text and COMMAND in text


def test_an_extension_of_another_version(said: dict[str, str]) -> None:
    text = said["another version"]
    assert f"_C is of version 0.0.9, the Python files beside it are of {OURS}" in text
    assert COMMAND in text


def test_an_old_pytorch(said: dict[str, str]) -> None:
    assert "needs PyTorch 2.8 or later, this is 2.7.1+cpu" in said["old PyTorch"]


def test_this_build_has_a_record() -> None:
    import torch_mlxnorm._build as build

    assert build.EXTENSION == f"_C{SUFFIX}"
    assert (build.TORCH, build.VERSION) == (str(HERE), OURS)
