"""The check of wheels: a right one passes, each fault is named. These are small, of a file in C by
zig; `make wheel` and `make wheel-macos` check whole ones."""

from __future__ import annotations

import base64
import hashlib
import re
import runpy
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from beside import beside, run, side_by_side

from tools import require_module
from torch_mlxnorm._extension import OLDEST_TORCH

require_module("ziglang", "PyPI ziglang")
require_module("lief", "PyPI lief")

import lief  # noqa: E402
from cross_compile.symbols import read_exports  # noqa: E402
from cross_compile.wheels import VERSIONS  # noqa: E402
from wheels.apple_tools import TBD, for_zig  # noqa: E402
from wheels.check import ROOT, Report, check  # noqa: E402

TORCH_EXPORTS = read_exports("2.13.0")
TORCH_SYMBOL = "__ZN3c104impl8GPUTrace13gpuTraceStateE"
SOURCE = """\
extern int of_torch __asm__("{symbol}"), of_python __asm__("{flat}");
extern int of_openmp __asm__("_omp_get_num_threads"), of_system __asm__("_objc_retain");
int *needed[] = {{&of_torch, &of_python, &of_openmp, &of_system}};
__asm__(".section __TEXT,__const\\n_shaders: .incbin \\"{shaders}\\"");
"""
OPENMP = "@rpath/libomp.dylib"
NAME = "torch_mlxnorm-0.1.0+torch2.13-cp311-cp311-macosx_14_0_arm64.whl"
EXTENSION = "_C.cpython-311-darwin.so"


@dataclass(frozen=True)
class Small:
    """What a small wheel is made of."""

    symbol: str = TORCH_SYMBOL
    flat: str = "_PyModule_Create2"  # bound to no library
    libtorch: str = "@rpath/libtorch_cpu.dylib"
    openmp: str = OPENMP
    rpath: str = "@loader_path/../torch/lib"
    target: str = "aarch64-macos.14.0"
    lacks: str = ""  # an op
    binary: Callable[[bytes], bytes] = lambda extension: extension
    name: str = NAME
    tag: str = "cp311-cp311-macosx_14_0_arm64"
    version: str = "0.1.0+torch2.13"
    requirement: str = "torch==2.13.*"
    built: Mapping[str, object] = field(default_factory=dict)
    files: Callable[[dict[str, bytes]], object] = lambda files: None  # after RECORD was written

    def extension(self, folder: Path) -> bytes:
        flatten = runpy.run_path(str(ROOT / "csrc/mps/embed_shaders.py"))["flatten"]
        shaders = (p for p in sorted((ROOT / "shaders").glob("*.metal")) if p.stem != self.lacks)
        (folder / "shaders").write_text("\0".join(map(flatten, shaders)))
        (folder / "small.c").write_text(
            SOURCE.format(symbol=self.symbol, flat=self.flat, shaders=folder / "shaders")
        )
        libraries = {
            self.libtorch: self.symbol,
            self.openmp: "_omp_get_num_threads",
            "/usr/lib/libobjc.A.dylib": "_objc_retain",
        }
        stubs = [folder / f"{i}.tbd" for i in range(len(libraries))]
        for stub, (library, symbol) in zip(stubs, libraries.items(), strict=True):
            stub.write_text(TBD.format(name=library, symbols=f"'{symbol}'"))
        done = run(
            [
                *(sys.executable, "-m", "ziglang", "cc", "-target", self.target, "-dynamiclib"),
                *("-undefined", "dynamic_lookup", f"-Wl,-rpath,{self.rpath}"),
                *("-Wl,-install_name,@rpath/_C.so", folder / "small.c", *stubs),
                *("-o", folder / EXTENSION),
            ]
        )
        assert done.returncode == 0, done.stderr
        return self.binary((folder / EXTENSION).read_bytes())

    def write(self, folder: Path) -> Path:
        about = f"torch_mlxnorm-{self.version}.dist-info"
        record = {"EXTENSION": EXTENSION, "TORCH": "2.13.0", "VERSION": "0.1.0", "METALLIBS": ()}
        build = "".join(f"{name} = {value!r}\n" for name, value in (record | self.built).items())
        files = {
            "torch_mlxnorm/_build.py": build.encode(),
            f"torch_mlxnorm/{EXTENSION}": self.extension(folder),
            "torch_mlxnorm/py.typed": b"",
            f"{about}/WHEEL": f"Wheel-Version: 1.0\nTag: {self.tag}\n".encode(),
            f"{about}/METADATA": (
                f"Name: torch_mlxnorm\nVersion: {self.version}\nRequires-Dist: {self.requirement}\n"
            ).encode(),
        }
        rows = [f"{about}/RECORD,,"]
        for name, content in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            rows.append(f"{name},sha256={digest.decode()},{len(content)}")
        files[f"{about}/RECORD"] = "\n".join(rows).encode()
        self.files(files)
        with zipfile.ZipFile(folder / self.name, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return folder / self.name


def of_intel(binary: lief.MachO.Binary) -> None:
    binary.header.cpu_type = lief.MachO.Header.CPU_TYPE.X86_64


def unsigned(binary: lief.MachO.Binary) -> None:
    binary.remove_signature()


def edited(change: Callable[[lief.MachO.Binary], object]) -> Callable[[bytes], bytes]:
    def edit(extension: bytes) -> bytes:
        fat = lief.MachO.parse(list(extension))
        assert fat is not None
        change(fat.at(0))
        return bytes(fat.raw())

    return edit


def processor(binary: lief.MachO.Binary) -> None:
    binary.header.cpu_type = lief.MachO.Header.CPU_TYPE.X86_64


RIGHT = Small()
# What is planted, and what the check says of it.
FAULTS: dict[str, tuple[Small, str]] = {
    "name": (
        Small(name=NAME.replace("cp311-cp311", "py3-none")),
        "is not the name of one of our wheels",
    ),
    "tag": (Small(tag="cp311-cp311-macosx_11_0_arm64"), "WHEEL has the tags"),
    "python": (
        Small(name=NAME.replace("cp311", "cp312"), tag="cp312-cp312-macosx_14_0_arm64"),
        f"{EXTENSION} is not of the Python of cp312-cp312-macosx_14_0_arm64",
    ),
    "hash": (
        Small(files=lambda files: files.update({"torch_mlxnorm/py.typed": b"edited"})),
        "for torch_mlxnorm/py.typed, which is",
    ),
    "unrecorded": (
        Small(files=lambda files: files.update({"torch_mlxnorm/stray.py": b""})),
        "RECORD does not have torch_mlxnorm/stray.py",
    ),
    "lost": (
        Small(files=lambda files: files.pop("torch_mlxnorm/py.typed")),
        "RECORD has torch_mlxnorm/py.typed, which is not there",
    ),
    "no extension": (
        Small(files=lambda files: files.pop(f"torch_mlxnorm/{EXTENSION}")),
        f"the wheel has no torch_mlxnorm/{EXTENSION}",
    ),
    "local version": (
        Small(version="0.1.0+torch2.12", name=NAME.replace("2.13", "2.12")),
        "the version 0.1.0+torch2.12 is not of PyTorch 2.13",
    ),
    "requirement": (Small(requirement="torch>=2.8"), "must require torch==2.13.*"),
    "another version": (Small(built={"VERSION": "0.0.9"}), "the extension is of version 0.0.9"),
    "not Mach-O": (Small(binary=lambda _: b"\x7fELF"), "the extension is not a Mach-O file of one"),
    "processor": (Small(binary=edited(of_intel)), "the extension is for X86_64"),
    "deployment target": (Small(target="aarch64-macos.15.0"), "the extension is for macOS 15.0"),
    "unsigned": (Small(binary=edited(unsigned)), "the extension has no signature"),
    "absolute library": (
        Small(openmp="/opt/llvm-openmp/lib/libomp.dylib"),
        "loads /opt/llvm-openmp/lib/libomp.dylib",
    ),
    "absolute rpath": (Small(rpath="/venv/torch/lib"), "rpaths must be @loader_path/../torch/lib"),
    "not exported": (
        Small(symbol="__ZN2at4nopeEv"),
        "at::nope() (__ZN2at4nopeEv) is not to be had",
    ),
    "of no library": (Small(flat="_MTLNope"), "(_MTLNope) is not to be had of Python"),
    "shader": (Small(lacks="rms_norm_add"), "the source of rms_norm_add is not in the extension"),
    "metallib": (Small(built={"METALLIBS": ("rms_norm",)}), "0 metallibs are in the extension"),
}


@beside
def wheel_reports() -> dict[str, Report]:
    def report(item: tuple[str, Small]) -> tuple[str, Report]:
        with tempfile.TemporaryDirectory() as folder:
            return item[0], check(item[1].write(Path(folder)), TORCH_EXPORTS)

    planted = {name: small for name, (small, _) in FAULTS.items()}
    return dict(side_by_side(report, ({"right": RIGHT} | planted).items()))


def test_a_right_wheel_passes(wheel_reports: dict[str, Report]) -> None:
    report = wheel_reports["right"]
    assert not report.faults, str(report)
    assert "nothing wrong" in str(report)
    assert (
        dict(report.lines)["symbols"]
        == "1 of Python, 1 of libSystem.B, 1 of libobjc.A, 1 of libomp, 1 of libtorch_cpu"
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, wheel_reports: dict[str, Report]) -> None:
    report = wheel_reports[fault]
    assert any(FAULTS[fault][1] in text for text in report.faults), str(report)


def test_the_workflow_makes_wheels_of_every_pytorch() -> None:
    """From the oldest on; those for PyPI of the newest."""
    text = (ROOT / ".github/workflows/wheels.yml").read_text()
    (listed,) = re.findall(r"^ *torch: \[(.*)\]$", text, re.MULTILINE)
    minors = re.findall(r'"2\.(\d+)"', listed)
    newest = VERSIONS[-1].rpartition(".")[0]
    assert minors == [str(minor) for minor in range(OLDEST_TORCH[1], int(newest[2:]) + 1)]
    assert set(re.findall(r'torch: "(.*)", wheel: pypi', text)) == {newest}


def test_compilers_arguments() -> None:
    apple = "-arch arm64 -mmacosx-version-min=14.0 -bundle a.o -framework Metal -o b.so".split()
    assert for_zig(apple) == "-target aarch64-macos.14.0 -dynamiclib a.o -o b.so".split()
