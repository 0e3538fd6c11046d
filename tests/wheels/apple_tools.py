"""What setup.py calls on a Mac, by zig: `clang`, `clang++` and `install_name_tool`.

zig has neither Apple's frameworks nor its libc++ to link with. In the place of each is a list
(.tbd) of the symbols that the objects need of it, told by their names (`PROVIDERS`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import lief  # noqa: E402
from cross_compile import APPLE_HEADERS  # noqa: E402
from cross_compile.symbols import undefined_symbols  # noqa: E402

PROVIDERS = {
    "/usr/lib/libc++.1.dylib": r"__ZN?K?St|__ZT[ISTV]N?K?St|__ZTVN10__cxxabiv1|__ZT[IS][a-z]$"
    r"|__Zn[aw]|__Zd[al]|___cxa_|___dynamic_cast$|___gxx_personality_v0$",
    "/usr/lib/libobjc.A.dylib": r"_objc_|__objc_empty_|_OBJC_EHTYPE_|___objc_personality_v0$",
    "/System/Library/Frameworks/Foundation.framework/Versions/C/Foundation": r"_OBJC_CLASS_\$_NS"
    r"|___CFConstantStringClassReference$",
    "/System/Library/Frameworks/Metal.framework/Versions/A/Metal": r"_OBJC_CLASS_\$_MTL|_MTL",
}
TBD = """\
--- !tapi-tbd
tbd-version: 4
targets: [ arm64-macos ]
install-name: '{name}'
exports:
  - targets: [ arm64-macos ]
    symbols: [ {symbols} ]
...
"""


def for_zig(arguments: Sequence[str]) -> list[str]:
    """Of Apple's compiler's arguments. A bundle, which zig's linker does not make, is to Python
    what a library is."""
    text = re.sub(r"^-arch\narm64$\n?", "", "\n".join(arguments), flags=re.MULTILINE)
    text = re.sub(r"^-framework\n\w+$\n?", "", text, flags=re.MULTILINE)
    text = re.sub(r"^-mmacosx-version-min=(.+)$", r"-target\naarch64-macos.\1", text, flags=re.M)
    return ["-dynamiclib" if word == "-bundle" else word for word in text.split("\n")]


def stubs(objects: Sequence[Path], folder: Path) -> list[str]:
    """Libraries of the system, as far as the objects need them."""
    needed = sorted(set().union(*map(undefined_symbols, objects)))
    made = []
    for name, pattern in PROVIDERS.items():
        symbols = ", ".join(f"'{symbol}'" for symbol in needed if re.match(pattern, symbol))
        path = folder / f"{Path(name).stem}.tbd"
        path.write_text(TBD.format(name=name, symbols=symbols))
        made.append(str(path))
    return made


def clang(arguments: list[str]) -> int:
    if "--version" in arguments:
        print("Apple clang version 17.0.0")
        return 0
    zig, given = [sys.executable, "-m", "ziglang", "c++"], for_zig(arguments)
    if "-c" in arguments:
        headers = os.environ["MLXNORM_PYTHON_HEADERS"]  # before those that setup.py names
        return subprocess.call(
            [*zig, f"-I{headers}", *given, "-g0", "-isystem", str(APPLE_HEADERS)]
        )
    output = Path(arguments[arguments.index("-o") + 1])
    objects = [Path(argument) for argument in arguments if argument.endswith(".o")]
    name = ["-nostdlib++", f"-Wl,-install_name,@rpath/{output.name}"]
    return subprocess.call([*zig, *given, *name, *stubs(objects, objects[0].parent)])


def install_name_tool(arguments: list[str]) -> int:
    match arguments:
        case ["-id", name, path]:
            binary = lief.MachO.parse(path).at(0)
            for command in binary.commands:
                if command.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB:
                    command.name = name
            binary.write(path)
            return 0
    return 1


if __name__ == "__main__":
    tool = install_name_tool if Path(sys.argv[1]).name == "install_name_tool" else clang
    sys.exit(tool(sys.argv[2:]))
