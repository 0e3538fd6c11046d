"""The package as others get it: the sdist has what git has, and a wheel of it works where there is
no checkout."""

from __future__ import annotations

import os
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from beside import beside, run

import torch_mlxnorm
from torch_mlxnorm import _C

ROOT = Path(__file__).parents[1]
NAME = f"torch_mlxnorm-{torch_mlxnorm.__version__}"
EGG_INFO = "torch_mlxnorm.egg-info"
# In the sdist and not in git: written by setuptools.
GENERATED = {"PKG-INFO", "setup.cfg"} | {
    f"{EGG_INFO}/{name}"
    for name in (
        "PKG-INFO",
        "SOURCES.txt",
        "dependency_links.txt",
        "entry_points.txt",
        "requires.txt",
        "top_level.txt",
    )
}
# What a checkout that is worked in has besides, and no package may.
STRAY = (
    f"torch_mlxnorm/{Path(_C.__file__).name}",
    "torch_mlxnorm/_build.py",
    "torch_mlxnorm/__pycache__/_version.cpython-311.pyc",
    "tests/__pycache__/ops.cpython-311.pyc",
    "tests/metal_sim/stray.so",
    "torch_mlxnorm-doctor.json",
    ".cache/macos-torch/torch.whl",
    ".venv/pyvenv.cfg",
    "build/torch-2.8.0/call.o",
)

# The extension takes minutes to compile, and the checkout has just done that: objects are empty,
# and the link gives the extension that the tests run with.
COMPILER = """\
#!{python} -SE
import shutil, sys
output = sys.argv[sys.argv.index("-o") + 1] if "-o" in sys.argv else None
if "-shared" in sys.argv or "-bundle" in sys.argv:
    shutil.copy({extension!r}, output)
elif output:
    open(output, "w").close()
    open(sys.argv[sys.argv.index("-MF") + 1], "w").close()
else:
    print("g++ (GCC) 14.0.0")
"""

SMOKE = """\
import sys
import torch, torch_mlxnorm
from torch_mlxnorm import reference

assert torch_mlxnorm.__file__.startswith(sys.prefix), torch_mlxnorm.__file__
x = torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
weight = torch.linspace(0.5, 2.0, 48)
expected = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
torch.testing.assert_close(torch_mlxnorm.rms_norm(x, weight).double(), expected, rtol=1e-6, atol=0)
normed, residual = torch_mlxnorm.add_rms_norm(x, x, weight)
assert torch.equal(residual, 2 * x)
torch_mlxnorm.RmsNormRecord(torch.float32, 7, 48)(x, weight, torch.empty_like(x))
assert torch_mlxnorm.RMSNorm(48).to("meta")(x.to("meta")).is_meta
from torch_mlxnorm.bench import __main__ as bench
bench.main("--op rms_norm --shape 2x64 --dtype float32 --turns 2 --peers eager".split())
"""


def git_files() -> set[str]:
    """Empty outside a checkout."""
    if not (ROOT / ".git").exists():
        return set()
    listed = succeed(["git", "-c", "safe.directory=*", "ls-files", "-z"], folder=ROOT)
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


def succeed(command: Sequence[str | Path], **options: Any) -> str:
    done = run(command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str, **options: Any) -> None:
    options_of_all = ["--quiet", "--no-index", "--no-deps"]
    succeed([sys.executable, "-m", "pip", *arguments, *options_of_all], **options)


def make_sdist(folder: Path) -> Path:
    """In a copy of the checkout that has been worked in."""
    sources = git_files() or set((ROOT / EGG_INFO / "SOURCES.txt").read_text().split("\n")) - {""}
    for name in sources - GENERATED:
        target = folder / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
        target.chmod((ROOT / name).stat().st_mode)
    for name in STRAY:
        target = folder / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("stray")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    succeed([sys.executable, "-c", build], folder=folder / "checkout")
    return folder / f"{NAME}.tar.gz"


def make_wheel(sdist: Path, folder: Path) -> Path:
    compiler = folder / "c++"
    compiler.write_text(COMPILER.format(python=sys.executable, extension=_C.__file__))
    compiler.chmod(0o755)
    link = f"{compiler} {'-bundle' if sys.platform == 'darwin' else '-shared'}"
    environment = {
        **{name: str(compiler) for name in ("CC", "CXX")},
        **{name: link for name in ("LDSHARED", "LDCXXSHARED")},
        "CCACHE_DISABLE": "1",
    }
    options = ["--no-build-isolation", "--wheel-dir", str(folder)]
    pip("wheel", *options, str(sdist), environment=environment)
    (made,) = folder.glob("*.whl")
    return made


def import_elsewhere(wheel: Path, folder: Path) -> CompletedProcess[str]:
    """In an environment of its own, with PyTorch from this one, which is gigabytes."""
    succeed([sys.executable, "-m", "venv", "--without-pip", folder / "env"])
    python = folder / "env/bin/python"
    pip("--python", str(python), "install", str(wheel))
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    outside = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "outside.pth").write_text("\n".join(outside))
    (folder / "elsewhere").mkdir()
    return run([python, "-I", "-c", SMOKE], folder=folder / "elsewhere")


@dataclass(frozen=True)
class Package:
    members: dict[str, int]  # files of the sdist and their modes
    wheel: dict[str, bytes]
    imported: CompletedProcess[str]


@beside
def built_package() -> Package:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist = make_sdist(folder)
        with tarfile.open(sdist) as archive:
            members = {member.name: member.mode for member in archive if member.isfile()}
        wheel = make_wheel(sdist, folder)
        with zipfile.ZipFile(wheel) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        imported = import_elsewhere(wheel, folder)
    return Package({name.split("/", 1)[1]: mode for name, mode in members.items()}, files, imported)


def test_the_sdist_has_what_git_has(built_package: Package) -> None:
    tracked = git_files()
    if not tracked:
        pytest.skip("not a git checkout: nothing to compare the sdist with")
    modes = built_package.members
    assert set(modes) == tracked | GENERATED
    programs = {name for name in tracked if os.access(ROOT / name, os.X_OK)}
    assert programs == {name for name, mode in modes.items() if mode & 0o100} and programs


def test_the_wheel_has_nothing_else(built_package: Package) -> None:
    about, wheel = f"{NAME}.dist-info", built_package.wheel
    metadata = message_from_bytes(wheel[f"{about}/METADATA"])
    assert wheel[f"{about}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "torch_mlxnorm").rglob("*.py")}
    extension = f"torch_mlxnorm/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    plain = {f"torch_mlxnorm/bench/plain.{suffix}" for suffix in ("py", "metal", "cpp")}
    package = python | plain | {"torch_mlxnorm/py.typed", "torch_mlxnorm/_build.py", extension}
    described = (
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    )
    assert set(wheel) == package | {f"{about}/{name}" for name in described}
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "torch>=2.8" in metadata.get_all("Requires-Dist")


def test_the_wheel_works_in_an_environment_of_its_own(built_package: Package) -> None:
    assert built_package.imported.returncode == 0, built_package.imported.stderr
