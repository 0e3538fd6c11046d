"""Stands in for the CUDA libraries that arm64 wheels of PyTorch 2.11 and later are linked with, and
tests on the CPU never call: `stub_cuda.py FOLDER` writes them beside the libraries of the wheel.

Every function returns cudaErrorInsufficientDriver, so PyTorch finds no GPU.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

TOOLS = "/usr/bin/aarch64-linux-gnu-"
# What is absent besides is Debian's. Functions are named as their libraries are.
CUDA_LIBRARY = re.compile("lib(cu|nccl|nv)")
CUDA_FUNCTION = re.compile("_*(cu|nccl|nv)")


def output_of(tool: str, *arguments: str | Path) -> str:
    return subprocess.run(
        [TOOLS + tool, *arguments], check=True, capture_output=True, text=True
    ).stdout


def main() -> None:
    folder = Path(sys.argv[1])
    libraries = sorted(folder.glob("*.so*"))
    present = {path.name for path in libraries}
    absent: set[str] = set()
    defined: set[str] = set()
    undefined: set[str] = set()
    owners: dict[str, str] = {}  # of a version's name: the library that has to define it
    for path in libraries:
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "--dynamic", path))
        absent |= {name for name in needed if name not in present and CUDA_LIBRARY.match(name)}
        library = ""
        for line in output_of("readelf", "--version-info", path).splitlines():
            if match := re.search(r"File: (\S+)", line):
                library = match[1]
            elif match := re.search(r"Name: (\S+)\s+Flags", line):
                owners[match[1]] = library
        for line in output_of("nm", "--dynamic", path).splitlines():
            *_, kind, name = line.split()
            if kind == "U" and CUDA_FUNCTION.match(name):
                undefined.add(name)
            elif kind not in "wv":
                defined.add(name.partition("@")[0])

    # Symbols of a version belong to one library; the loader looks for others in all of them.
    contents: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in absent}
    anywhere = min(absent, default="")
    for symbol in undefined:
        name, _, version = symbol.partition("@")
        library = owners.get(version.strip("@"), anywhere)
        if library in absent and name not in defined:
            contents[library][version.strip("@")].add(name)
    for library, versions in contents.items():
        names = sorted(set().union(*versions.values()))
        code = "".join(f"int {name}(void) {{ return 35; }}\n" for name in names)
        script = "".join(
            f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n"
            for version, names in versions.items()
            if version
        )
        target = folder / library
        map_file = target.with_suffix(".map")
        map_file.write_text(script)
        versioning = [f"-Wl,--version-script={map_file}"] if script else []
        subprocess.run(
            [f"{TOOLS}gcc", "-w", "-shared", "-nostdlib", "-fno-builtin", "-x", "c", "-"]
            + [*versioning, f"-Wl,-soname,{library}", "-o", target],
            input=code,
            text=True,
            check=True,
        )
        map_file.unlink()


if __name__ == "__main__":
    main()
