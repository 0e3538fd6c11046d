"""What object files need, and what PyTorch's macOS libraries and the system export."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import lief
import ziglang

EXPORTS = Path(__file__).parent / "exports"

# Kept in the lists whole: what an MPS extension is built on, and what changes between releases.
# Mangled names on macOS start with two underscores. Single ops (at::add, at::mps::add) are left
# out; the lists name those that the extension calls.
RELEVANT = re.compile(
    r"__Z(?:N|NK|NKR|TVN|TIN|TSN)"
    r"(?:2at3mps|2at6native3mps|2at6detail|2at8internal|2at10TensorBase|2at6Tensor\d"
    r"|3c10|5torch(?:7Library|11CppFunction|6detail))"
)
SINGLE_OP = re.compile(r"__ZN2at(?:3mps|6native3mps).*(?:2at6TensorE|NS_6TensorE)")

# System symbols that no library list at hand covers.
SYSTEM = re.compile(
    r"__ZN?K?St"  # libc++. Its age is not checked: zig's headers are newer than macOS 14's
    r"|__ZT[ISTV]N?K?St|__ZTVN10__cxxabiv1|__ZT[IS][a-z]$"
    r"|__Zn[aw]|__Zd[al]|___cxa_|___dynamic_cast$|___gxx_personality_v0$|___objc_personality_v0$|__Unwind_"
    r"|_objc_|__objc_empty_|_OBJC_EHTYPE_"
    r"|_OBJC_CLASS_\$_(?:NS|MTL)[A-Z]"
    r"|___CFConstantStringClassReference$"
    r"|___dso_handle$"  # the linker's
    r"|_MTLCreateSystemDefaultDevice$"
    r"|___isPlatformVersionAtLeast$"  # @available, from the compiler's own runtime
    r"|__?Py[A-Z_]"  # Python's, which the interpreter brings
)

# What is needed of every release alike: PyTorch's interface for MPS, and its vector math.
STABLE = re.compile(r"__ZNK?2at(?:3mps|6native3mps)|_Sleef_")


def _parse(file: str | bytes) -> lief.MachO.FatBinary:
    fat = lief.MachO.parse(file)
    if fat is None:
        raise ValueError("not a Mach-O file")
    return fat


def _symbols(path: Path, category: lief.MachO.Symbol.CATEGORY) -> set[str]:
    fat = _parse(str(path))  # owns what the next line reads
    return {str(symbol.name) for symbol in fat.at(0).symbols if symbol.category == category}


def undefined_symbols(path: Path) -> set[str]:
    return _symbols(path, lief.MachO.Symbol.CATEGORY.UNDEFINED)


def defined_symbols(path: Path) -> set[str]:
    return _symbols(path, lief.MachO.Symbol.CATEGORY.EXTERNAL)


def exported_symbols(library: bytes) -> set[str]:
    """The names that a dylib offers to others."""
    fat = _parse(library)
    binary = fat.at(0)
    # The linker of recent releases writes the one, that of older ones the other.
    info = binary.dyld_exports_trie if binary.has_dyld_exports_trie else binary.dyld_info
    return {str(export.symbol.name) for export in info.exports} if info is not None else set()


def read_exports(version: str) -> frozenset[str]:
    lines = (EXPORTS / f"torch-{version}.txt").read_text().splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def write_exports(version: str, exported: set[str], needed: set[str]) -> int:
    """Writes the list of a version: the relevant exports, and whatever else of them is needed."""
    kept = {name for name in exported if RELEVANT.match(name) and not SINGLE_OP.match(name)}
    kept |= exported & needed
    header = f"# From the macOS arm64 wheel of torch {version}; written by update_exports.\n"
    (EXPORTS / f"torch-{version}.txt").write_text(header + "\n".join(sorted(kept)) + "\n")
    return len(kept)


def listed_versions() -> list[str]:
    versions = [path.stem.removeprefix("torch-") for path in EXPORTS.glob("torch-*.txt")]
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


@functools.cache
def _libsystem() -> frozenset[str]:
    # libc, libm, libdispatch and the blocks runtime: zig ships the list it links against.
    text = (Path(ziglang.__file__).parent / "lib/libc/darwin/libSystem.tbd").read_text()
    return frozenset(re.findall(r"[\w$]+", text))


def from_system(name: str) -> bool:
    return SYSTEM.match(name) is not None or name in _libsystem()


def demangle(name: str) -> str:
    """A readable form, where binutils or LLVM is installed."""
    if shutil.which("c++filt") is None:
        return name
    # Mach-O puts an underscore before every name.
    run = subprocess.run(["c++filt", name.removeprefix("_")], capture_output=True, text=True)
    return run.stdout.strip()


def missing(
    objects: Iterable[Path], exports: Iterable[str], *, only_stable: bool = False
) -> dict[str, list[str]]:
    """Symbols that nobody provides, each with the objects that need it."""
    objects = list(objects)
    provided = set(exports).union(*map(defined_symbols, objects))
    found: dict[str, list[str]] = {}
    for path in objects:
        for name in undefined_symbols(path) - provided:
            if not from_system(name) and (not only_stable or STABLE.match(name)):
                found.setdefault(name, []).append(path.name)
    return found
