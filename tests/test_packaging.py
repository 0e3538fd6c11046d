"""The package as others get it: the sdist has what git has, and a wheel of it works where there is
no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import torch_mlxnorm
from torch_mlxnorm import _C

ROOT = Path(__file__).parents[1]
NAME = f"torch_mlxnorm-{torch_mlxnorm.__version__}"
EGG_INFO = "torch_mlxnorm.egg-info"
# In the sdist and not in git: written by setuptools.
GENERATED = {"PKG-INFO", "setup.cfg"} | {
    f"{EGG_INFO}/{name}"
    for name in ("PKG-INFO", "SOURCES.txt", "dependency_links.txt", "requires.txt", "top_level.txt")
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
"""


def git_files() -> set[str]:
    """Empty outside a checkout."""
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    if not (ROOT / ".git").exists():
        return set()
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


def pip(*arguments: str, **options: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-index", "--no-deps"]
    run = subprocess.run(command, capture_output=True, text=True, **options)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made in a copy of the checkout that has been worked in."""
    folder = tmp_path_factory.mktemp("sdist")
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
    command = [sys.executable, "-c", build]
    subprocess.run(command, cwd=folder / "checkout", capture_output=True, check=True)
    return folder / f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    compiler = folder / "c++"
    compiler.write_text(COMPILER.format(python=sys.executable, extension=_C.__file__))
    compiler.chmod(0o755)
    link = f"{compiler} {'-bundle' if sys.platform == 'darwin' else '-shared'}"
    environment = os.environ | {
        **{name: str(compiler) for name in ("CC", "CXX")},
        **{name: link for name in ("LDSHARED", "LDCXXSHARED")},
        "CCACHE_DISABLE": "1",
    }
    options = ["--no-build-isolation", "--wheel-dir", str(folder)]
    pip("wheel", *options, str(sdist), env=environment)
    (made,) = folder.glob("*.whl")
    return made


def test_the_sdist_has_what_git_has(sdist: Path) -> None:
    tracked = git_files()
    if not tracked:
        pytest.skip("not a git checkout: nothing to compare the sdist with")
    with tarfile.open(sdist) as archive:
        members = {member.name: member for member in archive if member.isfile()}
        modes = {name.split("/", 1)[1]: member.mode for name, member in members.items()}
    assert set(modes) == tracked | GENERATED
    programs = {name for name in tracked if os.access(ROOT / name, os.X_OK)}
    assert programs == {name for name, mode in modes.items() if mode & 0o100} and programs


def test_the_wheel_has_nothing_else(wheel: Path) -> None:
    about = f"{NAME}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = message_from_bytes(archive.read(f"{about}/METADATA"))
        assert archive.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    python = {f"torch_mlxnorm/{p.name}" for p in (ROOT / "torch_mlxnorm").glob("*.py")}
    extension = f"torch_mlxnorm/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    package = python | {"torch_mlxnorm/py.typed", "torch_mlxnorm/_build.py", extension}
    described = ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE", "top_level.txt")
    assert names == package | {f"{about}/{name}" for name in described}
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "torch>=2.8" in metadata.get_all("Requires-Dist")


def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """With PyTorch from this one, which is gigabytes."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    pip("--python", str(python), "install", str(wheel))
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    outside = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "outside.pth").write_text("\n".join(outside))
    (tmp_path / "elsewhere").mkdir()
    run = subprocess.run(
        [python, "-I", "-c", SMOKE], cwd=tmp_path / "elsewhere", capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
