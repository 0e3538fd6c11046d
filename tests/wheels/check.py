"""What a wheel must be before anybody installs it. Prints a report; fails if anything is wrong.

python tests/wheels/check.py dist/*.whl
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import re
import runpy
import sys
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from email import message_from_bytes
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import lief  # noqa: E402
from cross_compile.symbols import demangle, from_system  # noqa: E402
from cross_compile.wheels import exports  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"torch_mlxnorm-(?P<version>[^-]+)-(?P<tag>(cp3\d+)-\3-(?P<platform>[^-]+))\.whl")
MACOS = re.compile(r"macosx_(\d+)_(\d+)_arm64")
LINUX = re.compile(r"(many)?linux[\w.]*_(x86_64|aarch64)")
OLDEST_MACOS = (14, 0)  # as in setup.py
TORCH_BESIDE = "@loader_path/../torch/lib"  # as in setup.py
LIBRARIES = {
    "macosx": re.compile(
        r"@rpath/lib(c10|torch|torch_cpu|torch_python|omp)\.dylib"
        r"|/usr/lib/lib(c\+\+\.1|objc\.A|System\.B)\.dylib"
        r"|/System/Library/Frameworks/(?P<f>Foundation|CoreFoundation|Metal)\.framework/Versions/[AC]/(?P=f)"
    ),
    "linux": re.compile(
        r"lib(c10|torch|torch_cpu|torch_python)\.so|lib(gomp|pthread|stdc\+\+|m|gcc_s|c)\.so\.\d"
        r"|ld-linux-(x86-64|aarch64)\.so\.\d"
    ),
}
FLAT = -2  # BIND_SPECIAL_DYLIB_FLAT_LOOKUP: of any library that is loaded
METALLIB = b"MTLB"


@dataclass(frozen=True)
class Wheel:
    path: Path
    torch_exports: Collection[str]  # of the macOS wheel of the PyTorch that it is for

    @cached_property
    def files(self) -> dict[str, bytes]:
        with zipfile.ZipFile(self.path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    @cached_property
    def name(self) -> re.Match[str]:
        match = NAME.fullmatch(self.path.name)
        if match is None:
            raise ValueError(f"{self.path.name} is not the name of one of our wheels")
        return match

    def file(self, name: str) -> bytes:
        if name not in self.files:
            raise ValueError(f"the wheel has no {name}")
        return self.files[name]

    def about(self, name: str) -> bytes:
        return self.file(f"torch_mlxnorm-{self.name['version']}.dist-info/{name}")

    @cached_property
    def built(self) -> dict[str, str]:
        """What setup.py recorded."""
        text = self.file("torch_mlxnorm/_build.py").decode()
        record: dict[str, str] = {}
        exec(text, record)
        return record

    @cached_property
    def extension(self) -> bytes:
        return self.file(f"torch_mlxnorm/{self.built['EXTENSION']}")

    @property
    def macos(self) -> bool:
        return MACOS.fullmatch(self.name["platform"]) is not None

    @cached_property
    def parsed(self) -> lief.MachO.FatBinary | lief.ELF.Binary:
        parse, kind = (lief.MachO.parse, "Mach-O") if self.macos else (lief.ELF.parse, "ELF")
        parsed = parse(list(self.extension))
        if parsed is None or (self.macos and parsed.size != 1):
            raise ValueError(f"the extension is not a {kind} file of one processor")
        return parsed

    @property
    def binary(self) -> lief.MachO.Binary | lief.ELF.Binary:
        return self.parsed.at(0) if self.macos else self.parsed  # which owns it


lief.logging.disable()  # it says in numbers what the report says in words


# What there is, in a line, and what of it is wrong.
Finding = tuple[str, list[str]]


def check_tags(wheel: Wheel) -> Finding:
    """The name says what WHEEL says, and what the extension is for."""
    tag, platform = wheel.name["tag"], wheel.name["platform"]
    tags = message_from_bytes(wheel.about("WHEEL")).get_all("Tag", [])
    faults = [] if set(tags) == expanded(tag) else [f"WHEEL has the tags {tags}, the name {tag}"]
    python = re.search(r"\.cpython-(\d+)-", wheel.built["EXTENSION"])
    if python is None or f"cp{python[1]}" != tag.partition("-")[0]:
        faults.append(f"{wheel.built['EXTENSION']} is not of the Python of {tag}")
    if not wheel.macos and not LINUX.fullmatch(platform):
        faults.append(f"no wheel is made for {platform}")
    return tag, faults


def expanded(tag: str) -> set[str]:
    """Of a compressed tag set, as auditwheel makes."""
    python, abi, platforms = tag.split("-")
    return {f"{python}-{abi}-{platform}" for platform in platforms.split(".")}


def check_record(wheel: Wheel) -> Finding:
    """Every file with its hash and size."""
    rows = {name: rest for name, *rest in csv.reader(wheel.about("RECORD").decode().splitlines())}
    faults = [f"RECORD does not have {name}" for name in sorted(set(wheel.files) - set(rows))]
    faults += [
        f"RECORD has {name}, which is not there" for name in sorted(set(rows) - set(wheel.files))
    ]
    for name in sorted(set(rows) & set(wheel.files)):
        digest = base64.urlsafe_b64encode(hashlib.sha256(wheel.files[name]).digest()).rstrip(b"=")
        right = [f"sha256={digest.decode()}", str(len(wheel.files[name]))]
        if rows[name] != right and not name.endswith("/RECORD"):
            faults.append(f"RECORD has {rows[name]} for {name}, which is {right}")
    return f"{len(rows)} files", faults


def check_versions(wheel: Wheel) -> Finding:
    """One minor version of PyTorch in the requirement, the extension's record and, where the wheel
    has one, the local version."""
    metadata = message_from_bytes(wheel.about("METADATA"))
    version, local = metadata["Version"], metadata["Version"].partition("+")[2]
    minor = ".".join(wheel.built["TORCH"].split(".")[:2])
    requirements = [r for r in metadata.get_all("Requires-Dist", []) if "extra" not in r]
    faults = []
    if version != wheel.name["version"]:
        faults.append(f"METADATA has the version {version}, the name {wheel.name['version']}")
    if local not in ("", f"torch{minor}"):
        faults.append(f"the version {version} is not of PyTorch {minor}, for which it was built")
    if requirements != [f"torch=={minor}.*"]:
        faults.append(f"requires {requirements}, must require torch=={minor}.*")
    if wheel.built["VERSION"] != version.partition("+")[0]:
        faults.append(f"the extension is of version {wheel.built['VERSION']}, not {version}")
    return f"{version}, requires {', '.join(requirements)}", faults


def check_format(wheel: Wheel) -> Finding:
    """Of the processor and, on macOS, for the system that the name says; signed."""
    if not wheel.macos:
        machine = wheel.binary.header.machine_type.name
        right = {"X86_64": "x86_64", "AARCH64": "aarch64"}.get(machine, machine)
        fits = wheel.name["platform"].endswith(right)
        return f"ELF, {right}", [] if fits else [f"the extension is for {right}"]
    faults = []
    header = wheel.binary.header
    cpu, kind = header.cpu_type.name, header.file_type.name
    if cpu != "ARM64":
        faults.append(f"the extension is for {cpu}")
    if kind not in ("BUNDLE", "DYLIB"):  # Apple's linker makes the one, zig's the other
        faults.append(f"the extension is a {kind}")
    build = wheel.binary.build_version
    least = tuple(build.minos[:2]) if build is not None else ()
    platform = tuple(map(int, MACOS.fullmatch(wheel.name["platform"]).groups()))
    if not least == platform == OLDEST_MACOS:
        faults.append(
            f"the extension is for macOS {dotted(least)}, the name says {dotted(platform)}, "
            f"both must be {dotted(OLDEST_MACOS)}"
        )
    if not wheel.binary.has_code_signature:
        faults.append("the extension has no signature, without which arm64 loads nothing")
    return f"Mach-O, {cpu.lower()}, {kind.lower()}, macOS {dotted(least)}, signed", faults


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version)) or "of any version"


def check_libraries(wheel: Wheel) -> Finding:
    """PyTorch's by @rpath (or name), others where every system has them."""
    if wheel.macos:
        commands = wheel.binary.commands
        own = [c.name for c in commands if c.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB]
        libraries = [library.name for library in wheel.binary.libraries if library.name not in own]
    else:
        libraries = list(map(str, wheel.binary.libraries))
    allowed = LIBRARIES["macosx" if wheel.macos else "linux"]
    faults = [f"loads {name}" for name in libraries if not allowed.fullmatch(name)]
    return ", ".join(libraries), faults


def check_rpaths(wheel: Wheel) -> Finding:
    if wheel.macos:
        rpaths = [rpath.path for rpath in wheel.binary.rpaths]
        faults = [] if rpaths == [TORCH_BESIDE] else [f"rpaths must be {TORCH_BESIDE}: {rpaths}"]
        return ", ".join(rpaths), faults
    entries = [
        entry
        for entry in wheel.binary.dynamic_entries
        if entry.tag in (lief.ELF.DynamicEntry.TAG.RPATH, lief.ELF.DynamicEntry.TAG.RUNPATH)
    ]
    # `import torch` has loaded PyTorch's libraries before.
    return "none" if not entries else "some", [f"has {entry}" for entry in entries]


def check_symbols(wheel: Wheel) -> Finding:
    """What is needed of PyTorch is exported there; Python's are bound to no library."""
    needed: dict[str, set[str]] = {}
    for binding in wheel.binary.bindings:
        library = Path(binding.library.name).stem if binding.library is not None else None
        if binding.library_ordinal == FLAT:
            library = "Python"
        if library is not None:  # else the extension's own, which others may override
            needed.setdefault(library, set()).add(str(binding.symbol.name))
    faults = [
        f"{demangle(name)} ({name}) is not to be had of {library}"
        for library, names in needed.items()
        for name in sorted(names)
        if not provided(name, library, wheel.torch_exports)
    ]
    counts = sorted((library, len(names)) for library, names in needed.items())
    return ", ".join(f"{count} of {library}" for library, count in counts), faults


def provided(name: str, library: str, torch_exports: Collection[str]) -> bool:
    if library == "Python":
        return re.match(r"__?Py", name) is not None
    if library == "libomp":
        return re.match(r"___kmpc_|_omp_", name) is not None
    if library.startswith(("libtorch", "libc10")):
        return name in torch_exports
    return from_system(name)


def check_shaders(wheel: Wheel) -> Finding:
    """The source of every op; metallibs where Apple's compiler was at hand."""
    flatten = runpy.run_path(str(ROOT / "csrc/mps/embed_shaders.py"))["flatten"]
    shaders = sorted((ROOT / "shaders").glob("*.metal"))
    lacking = [path.stem for path in shaders if flatten(path).encode() not in wheel.extension]
    faults = [f"the source of {name} is not in the extension" for name in lacking]
    recorded, found = len(wheel.built["METALLIBS"]), wheel.extension.count(METALLIB)
    if found < recorded:
        faults.append(f"{found} metallibs are in the extension, recorded are {recorded}")
    return f"source of {len(shaders) - len(lacking)} ops, {recorded} metallibs", faults


CHECKS: dict[str, Callable[[Wheel], Finding]] = {
    "tags": check_tags,
    "record": check_record,
    "versions": check_versions,
    "format": check_format,
    "libraries": check_libraries,
    "rpaths": check_rpaths,
}
MACOS_CHECKS = {"symbols": check_symbols, "shaders": check_shaders}


@dataclass
class Report:
    lines: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [*self.lines]
        rows += [("FAULT", fault) for fault in self.faults] or [("verdict", "nothing wrong")]
        return "\n".join(f"{what:10} {text}" for what, text in rows)


def check(path: Path, torch_exports: Collection[str] | None = None) -> Report:
    """torch_exports: of the libraries of PyTorch that the wheel is for; those of its macOS wheel if
    they are not given."""
    report = Report([("wheel", f"{path.name}, {path.stat().st_size:,} bytes")])
    wheel = Wheel(path, torch_exports or ())
    try:
        if wheel.macos and torch_exports is None:
            wheel = Wheel(path, exports(wheel.built["TORCH"].partition("+")[0]))
        for what, examine in (CHECKS | (MACOS_CHECKS if wheel.macos else {})).items():
            found, faults = examine(wheel)
            report.lines.append((what, found))
            report.faults += faults
    except ValueError as error:  # without which there is nothing more to examine
        report.faults.append(str(error))
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    reports = [check(path) for path in parser.parse_args().wheels]
    print(*reports, sep="\n\n")
    return int(any(report.faults for report in reports))


if __name__ == "__main__":
    sys.exit(main())
