"""setup.py: what it does on a Mac (tests/darwin), and what it builds again."""

from __future__ import annotations

import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import setuptools
import torch
from beside import beside, run, side_by_side
from built import SOURCES
from darwin import ROOT, Command, Mac, touch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="simulates a Mac on Linux")

OPS = sorted(path.stem for path in (ROOT / "shaders").glob("*.metal"))
TORCH_OPENMP = ("torch/include/omp.h", "torch/lib/libomp.dylib")


@dataclass
class Built:
    """A Mac on which setup.py ran, and what it said."""

    mac: Mac
    run: CompletedProcess[str]

    @property
    def right(self) -> Mac:
        assert self.run.returncode == 0, self.said
        return self.mac

    @property
    def said(self) -> str:
        return self.run.stdout + self.run.stderr


def universal_mac(folder: Path) -> Built:
    """The worst of Pythons: universal2, for macOS 10.13, in an environment set up for 11.0."""
    mac = Mac(
        folder,
        archs="-arch arm64 -arch x86_64",
        tools=("clang", "clang++", "install_name_tool", "xcrun"),
        environment={
            "MACOSX_DEPLOYMENT_TARGET": "11.0",
            "ARCHFLAGS": "-arch arm64 -arch x86_64",
            "CXX": "clang++ -arch x86_64",
            "CFLAGS": "-mmacosx-version-min=11.0",
            "CPPFLAGS": "-mmacosx-version-min=11.0",
            "LDFLAGS": "-mmacosx-version-min=11.0 -arch x86_64",
        },
    )
    mac.has(*TORCH_OPENMP, "prefix/include/omp.h", "prefix/lib/libomp.dylib")
    return Built(mac, mac.setup("bdist_wheel"))


def mac_whose_compiler_fails(folder: Path) -> Built:
    mac = Mac(folder)
    xcrun = folder / "bin/xcrun"
    xcrun.write_text(
        '#!/bin/sh\ncase "$*" in *--version*) exit 0;; esac\necho "bad cast"; exit 1\n'
    )
    xcrun.chmod(0o755)
    return Built(mac, mac.setup("build_ext"))


def plain_mac(folder: Path) -> Built:
    """A Python for arm64, Homebrew's kind; its OpenMP alone; a target of the user's own."""
    omp = folder / "omp"
    mac = Mac(folder, environment={"MACOSX_DEPLOYMENT_TARGET": "15.4", "OMP_PREFIX": str(omp)})
    mac.has("omp/include/omp.h", "omp/lib/libomp.dylib")
    return Built(mac, mac.setup("build_ext"))


def mac_in_place(folder: Path) -> Built:
    mac = Mac(folder)
    return Built(mac, mac.setup("build_ext", "--inplace"))


def mac_with(**description: Any) -> Callable[[Path], Built]:
    def build(folder: Path) -> Built:
        mac = Mac(folder, **description)
        return Built(mac, mac.setup("build_ext"))

    return build


MACS: dict[str, Callable[[Path], Built]] = {
    "universal": universal_mac,
    "failing xcrun": mac_whose_compiler_fails,
    "plain": plain_mac,
    "bare": mac_with(),
    "in place": mac_in_place,
    "no target": mac_with(environment={"MACOSX_DEPLOYMENT_TARGET": "sonoma"}),
    "intel": mac_with(machine="x86_64", archs="-arch x86_64"),
}
FOLDER = tempfile.TemporaryDirectory()


@beside
def macs() -> dict[str, Built]:
    def build(name: str) -> Built:
        folder = Path(FOLDER.name, name.replace(" ", "_"))
        folder.mkdir()
        return MACS[name](folder)

    return dict(zip(MACS, side_by_side(build, MACS), strict=True))


@pytest.fixture
def universal(macs: dict[str, Built]) -> Mac:
    return macs["universal"].right


def compilations(mac: Mac) -> list[Command]:
    return [call for call in mac.commands() if "-c" in call.arguments and call.tool != "xcrun"]


def link(mac: Mac) -> Command:
    (command,) = [command for command in mac.commands() if "-bundle" in command.arguments]
    return command


def test_every_source_is_compiled(universal: Mac) -> None:
    sources = {command.source for command in compilations(universal)}
    native = {path.name for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".mm")}
    assert sources == native
    assert {f"{op}.cpp" for op in OPS} < sources  # of csrc/cpu/isa


def test_a_universal_python_builds_for_arm64_alone(universal: Mac) -> None:
    commands = [*compilations(universal), link(universal)]
    assert [command.values("-arch") for command in commands] == [{"arm64"}] * len(commands)


def test_an_earlier_deployment_target_does_not_win(universal: Mac) -> None:
    for command in (*compilations(universal), link(universal)):
        assert command.target == "14.0"
        assert command.starting("-mmacosx-version-min=") == {"14.0"}, command


def test_the_wheel_says_what_it_is_for(universal: Mac) -> None:
    (wheel,) = (universal.source / "dist").iterdir()
    assert wheel.name.endswith("-macosx_14_0_arm64.whl")


def test_sources_for_metal(universal: Mac) -> None:
    """Without automatic reference counting, which the .mm files are not written for."""
    for command in compilations(universal):
        isa = "-DCPU_CAPABILITY=DEFAULT" in command.arguments
        assert ("-fno-objc-arc" in command.arguments) == (not isa)
        assert not command.starting("-mavx")
    assert link(universal).values("-framework") == {"Metal", "Foundation"}


def test_xcodes_compiler_makes_a_metallib_of_every_op(universal: Mac) -> None:
    """And what it says is kept."""
    (generated,) = (universal.source / "build").glob("*/generated")
    assert "nullptr" not in (generated / "embedded_shaders.h").read_text()
    assert (generated / "metal.log").read_text().count("exit status 0\n") == len(OPS)
    (record,) = (universal.source / "build").glob("lib*/torch_mlxnorm/_build.py")
    assert runpy.run_path(str(record))["METALLIBS"] == OPS


def test_an_error_of_xcodes_compiler_ends_the_build(macs: dict[str, Built]) -> None:
    failed = macs["failing xcrun"]
    assert failed.run.returncode != 0 and "bad cast" in failed.run.stdout
    (log,) = (failed.mac.source / "build").glob("*/generated/metal.log")
    assert log.read_text().endswith("bad cast\nexit status 1\n")


@pytest.mark.parametrize(
    "finds, made, message",
    [
        (1, [], None),
        (0, OPS, None),
        (0, OPS[1:], f"xcrun finds metal, and there is no metallib of {OPS[0]}"),
    ],
    ids=["no compiler", "all", "one is missing"],
)
def test_a_missing_metallib_fails_ci(
    finds: int,
    made: list[str],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    xcrun = tmp_path / "xcrun"
    xcrun.write_text(f"#!/bin/sh\nexit {finds}\n")
    xcrun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("torch_mlxnorm._build.METALLIBS", made)
    main = runpy.run_path(str(ROOT / "tools/check_metallibs.py"))["main"]
    assert main() == message


def test_openmp_is_pytorchs_own(universal: Mac) -> None:
    """No Homebrew: header and library come from PyTorch's wheel, also where others lie about."""
    threaded = [c for c in compilations(universal) if "-fopenmp" in c.arguments]
    assert {"parallel.cpp"} <= {command.source for command in threaded}
    for command in threaded:
        assert command.values("-Xclang") == {"-fopenmp"}
        assert f"-I{universal.torch}/include" in command.arguments
    (library,) = [a for a in link(universal).arguments if a.endswith("libomp.dylib")]
    (named,) = [c.arguments for c in universal.commands() if c.tool == "install_name_tool"]
    assert named == ["-id", "@rpath/libomp.dylib", library]
    assert Path(universal.source, library).is_relative_to(universal.source / "build")


def test_pytorchs_libraries_are_beside_a_wheels(universal: Mac, macs: dict[str, Built]) -> None:
    """And nowhere else; those of an extension in a checkout are where they were."""
    rpath = "-Wl,-rpath,"
    beside, there = "@loader_path/../torch/lib", f"{macs['in place'].mac.torch}/lib"
    assert link(universal).starting(rpath) == {beside}
    assert link(macs["in place"].right).starting(rpath) == {beside, there}


def test_a_plain_mac(macs: dict[str, Built]) -> None:
    mac = macs["plain"].right
    omp = mac.folder / "omp"
    commands = [*compilations(mac), link(mac)]
    for command in commands:
        assert command.target == "15.4"
        assert command.starting("-mmacosx-version-min=") == {"15.4"}
        assert command.values("-arch") == {"arm64"}
    assert any(f"-I{omp}/include" in command.arguments for command in commands)
    assert str(omp / "lib/libomp.dylib") in link(mac).arguments


def test_a_mac_without_openmp_or_xcrun(macs: dict[str, Built]) -> None:
    """Builds all the same, and says what is missing."""
    mac, said = macs["bare"].right, macs["bare"].said
    assert f"warning: no omp.h in {mac.torch}, " in said
    assert "CPU kernels will use one thread (OMP_PREFIX=" in said
    assert not any("-fopenmp" in command.arguments for command in compilations(mac))
    assert not any(argument.endswith("libomp.dylib") for argument in link(mac).arguments)
    (header,) = (mac.source / "build").glob("*/generated/embedded_shaders.h")
    assert not header.with_name("metal.log").exists()
    assert header.read_text().count("nullptr, 0") == len(OPS)


@pytest.fixture(scope="module")
def functions() -> dict[str, Any]:
    """What setup.py defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **_: None)
        patch.setenv("PATH", os.environ["PATH"])  # setup.py adds to it
        return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    "files, header, library",
    [
        # Never a second runtime beside PyTorch's.
        (TORCH_OPENMP + ("brew/include/omp.h", "brew/lib/libomp.dylib"), "torch", "torch"),
        (
            ("torch/lib/libomp.dylib", "brew/include/omp.h", "brew/lib/libomp.dylib"),
            "brew",
            "torch",
        ),
        (("brew/include/omp.h", "brew/lib/libomp.dylib"), "brew", "brew"),
    ],
)
def test_openmp(
    files: tuple[str, ...], header: str, library: str, tmp_path: Path, functions: dict[str, Any]
) -> None:
    touch(tmp_path, *files)
    compile_flags, link_flags = functions["openmp"]([tmp_path / "torch", tmp_path / "brew"])
    assert compile_flags == ["-Xclang", "-fopenmp", f"-I{tmp_path / header}/include"]
    assert link_flags == [f"{tmp_path / library}/lib/libomp.dylib"]


@pytest.mark.parametrize(
    "files, missing",
    [((), "omp.h"), (TORCH_OPENMP[:1], "libomp.dylib"), (TORCH_OPENMP[1:], "omp.h")],
)
def test_half_an_openmp_is_none(
    files: tuple[str, ...],
    missing: str,
    tmp_path: Path,
    functions: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    touch(tmp_path, *files)
    places = [tmp_path / "torch", tmp_path / "brew"]
    assert functions["openmp"](places) == ([], [])
    assert f"warning: no {missing} in {places[0]}, {places[1]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "preset, target",
    [
        *((None, "14.0"), ("", "14.0"), ("10.9", "14.0"), ("11.0", "14.0"), ("13.99", "14.0")),
        *(("14", "14.0"), ("14.0", "14.0"), ("14.2.1", "14.2"), ("15.0", "15.0"), ("26", "26.0")),
    ],
)
def test_deployment_target(preset: str | None, target: str, functions: dict[str, Any]) -> None:
    assert functions["deployment_target"](preset) == target


@pytest.mark.parametrize(
    "wheel, version, torch_requirement",
    [
        (None, "", "torch>=2.8"),
        ("local", "+torch{}", "torch=={}.*"),
        ("pypi", "", "torch=={}.*"),
    ],
)
def test_a_wheel_for_others_is_of_one_pytorch(
    wheel: str | None, version: str, torch_requirement: str, functions: dict[str, Any]
) -> None:
    minor = ".".join(torch.__version__.split(".")[:2])
    expected = functions["VERSION"] + version.format(minor), torch_requirement.format(minor)
    assert functions["requirements"](wheel) == expected


def test_a_wheel_for_nobody(functions: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="MLXNORM_WHEEL must be local or pypi, got 'conda'"):
        functions["requirements"]("conda")


@pytest.mark.parametrize(
    "command, kept",
    [
        ("clang -arch x86_64 -g -arch arm64", "clang -g"),
        ("clang++ -mmacosx-version-min=11.0 -O2 -mmacos-version-min=11.0", "clang++ -O2"),
        ("clang -march=armv8.2-a -archive '-I/a b'", "clang -march=armv8.2-a -archive '-I/a b'"),
    ],
)
def test_without_targets(command: str, kept: str, functions: dict[str, Any]) -> None:
    assert functions["without_targets"](shlex.split(command)) == shlex.split(kept)


def test_a_deployment_target_that_is_none(macs: dict[str, Built]) -> None:
    refused = macs["no target"].run
    assert refused.returncode != 0
    assert "MACOSX_DEPLOYMENT_TARGET must be a version such as 14.0, got 'sonoma'" in refused.stderr


def test_an_intel_mac_is_refused(macs: dict[str, Built]) -> None:
    refused, mac = macs["intel"].run, macs["intel"].mac
    assert refused.returncode != 0
    assert (
        "needs Apple silicon on macOS, and a Python for it: this one is for x86_64"
        in refused.stderr
    )
    assert not (mac.folder / "log").exists()


# What setup.py builds again, shown on a small project with its layout.

SMALL = {
    "csrc/cpu/isa/one.cpp": '#include "../../../shaders/formulas/one.h"\n#include "shared.h"\n',
    "csrc/cpu/isa/two.cpp": '#include "shared.h"\n',
    "csrc/cpu/isa/three.cpp": "static int three = 3;\n",
    "csrc/cpu/isa/shared.h": "static int shared = 1;\n",
    "shaders/formulas/one.h": "static int one = 1;\n",
    "csrc/ops/one.h": "static int checks = 1;\n",
    "csrc/library.cpp": '#include "ops/one.h"\n',
    "csrc/cpu/cpu.cpp": '#include "../ops/one.h"\n',
    "csrc/python/module.cpp": "#include <Python.h>\n"
    "PyMODINIT_FUNC PyInit__C() { static PyModuleDef def{}; return PyModule_Create(&def); }\n",
    "torch_mlxnorm/__init__.py": "",
    "torch_mlxnorm/_version.py": '__version__ = "0"\n',
}
SETS = ("DEFAULT", "AVX2", "AVX512") if platform.machine() == "x86_64" else ("DEFAULT",)


def objects_of(*sources: str) -> set[str]:
    return {f"isa/{source}_{isa}.o" for source in sources for isa in SETS}


@dataclass
class Rebuilt:
    """What builds of the small project made, each after something was changed."""

    objects: dict[str, set[str]]
    folders: list[str]
    record: dict[str, Any]
    sources: str


@beside
def rebuilt() -> Rebuilt:
    with tempfile.TemporaryDirectory() as name:
        return rebuilt_in(Path(name))


def rebuilt_in(small: Path) -> Rebuilt:
    for name, text in SMALL.items():
        path = small / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (small / "tools").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "tools/sources.py"):
        shutil.copy(ROOT / name, small / name)

    def times() -> dict[str, int]:
        (folder,) = (small / "build").glob("torch-*")
        made = {str(p.relative_to(folder)): p for p in folder.rglob("*.o")}
        made |= {"extension": next((small / "torch_mlxnorm").glob("_C.*"))}
        return {name: path.stat().st_mtime_ns for name, path in made.items()}

    def built() -> set[str]:
        """The objects that a build makes anew. Each is linked."""
        before = times() if (small / "build").exists() else {}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = run(command, folder=small)
        assert done.returncode == 0, done.stdout + done.stderr
        anew = {name for name, time in times().items() if before.get(name) != time}
        return anew - {"extension"} if "extension" in anew else set()

    def edit(*names: str) -> set[str]:
        for name in names:
            with (small / name).open("a") as file:
                file.write("// edited\n")
        return built()

    objects = {"at first": built(), "nothing": built()}
    objects["formula, ISA source, header"] = edit(
        "shaders/formulas/one.h", "csrc/cpu/isa/three.cpp", "csrc/ops/one.h"
    )
    objects["ISA header, source"] = edit("csrc/cpu/isa/shared.h", "csrc/python/module.cpp")
    setup = small / "setup.py"
    setup.write_text(setup.read_text().replace('["-O3", ', '["-O1", '))
    objects["flag"] = built()
    record: dict[str, Any] = {}
    exec((small / "torch_mlxnorm/_build.py").read_text(), record)
    folders = [path.name for path in (small / "build").glob("torch-*")]
    return Rebuilt(objects, folders, record, SOURCES["digest"](small))


def test_what_is_built_again(rebuilt: Rebuilt) -> None:
    """What a changed source, header or flag touches, and nothing else; in a folder of its own for
    each PyTorch, platform and Python."""
    others = {"csrc/library.o", "csrc/cpu/cpu.o", "csrc/python/module.o"}
    everything = objects_of("one", "two", "three") | others
    assert rebuilt.objects == {
        "at first": everything,
        "nothing": set(),
        "formula, ISA source, header": objects_of("one", "three")
        | {"csrc/library.o", "csrc/cpu/cpu.o"},
        "ISA header, source": objects_of("one", "two") | {"csrc/python/module.o"},
        "flag": everything,
    }

    (folder,) = rebuilt.folders
    python = f"cpython-{sys.version_info[0]}{sys.version_info[1]}{sys.abiflags}"
    assert folder == f"torch-{torch.__version__}-{sysconfig.get_platform()}-{python}"
    assert (rebuilt.record["TORCH"], rebuilt.record["VERSION"]) == (torch.__version__, "0")
    assert rebuilt.record["SOURCES"] == rebuilt.sources


@pytest.fixture(scope="module")
def objects() -> dict[str, set[str]]:
    """The objects of this tree's extension that each file is compiled into: the compilers' word."""
    python = f"{sys.implementation.cache_tag}{sys.abiflags}"
    folder = ROOT / f"build/torch-{torch.__version__}-{sysconfig.get_platform()}-{python}"
    if not folder.exists():
        pytest.skip(f"the extension was not built in {folder}")
    found: dict[str, set[str]] = {}
    # PyTorch runs ninja in its folder, setup.py in the root.
    for at, file in ((folder, folder / "build.ninja"), (ROOT, folder / "isa/build.ninja")):
        command = [shutil.which("ninja") or "ninja", "-C", at, "-f", file, "-t", "deps"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for block in re.findall(r"^(?:/.*\(VALID\)\n)(?:    .*\n)+", said, re.MULTILINE):
            target, *names = block.splitlines()
            for path in ((at / name.strip()).resolve() for name in names):
                ours = path.is_relative_to(ROOT) and not path.is_relative_to(sys.prefix)
                if ours and path.exists():
                    name = str(path.relative_to(ROOT))
                    found.setdefault(name, set()).add(Path(target.partition(":")[0]).name)
    return found


@pytest.mark.parametrize("op", OPS)
def test_a_formula_is_compiled_once_for_each_instruction_set(
    op: str, objects: dict[str, set[str]]
) -> None:
    formulas = {name: (ROOT / "shaders/formulas" / f"{name}.h").read_text() for name in OPS}
    users = [name for name, text in formulas.items() if f'"{op}.h"' in text]  # as their segments
    names = {f"{name}_{isa}.o" for name in (op, *users) for isa in SETS}
    assert objects[f"shaders/formulas/{op}.h"] == names


def test_the_digest_is_of_all_that_is_compiled(objects: dict[str, set[str]]) -> None:
    known = {str(path.relative_to(ROOT)) for path in SOURCES["compiled"]()}
    assert not set(objects) - known
