"""Checks that a .metal file keeps to Metal's dialect of C++, without Apple's compiler. See
README.md."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from .rewrite import origins, to_opencl
from .syntax_tree import SyntaxTree

_HERE = Path(__file__).parent
COMPILER = "clang++-19"

# Macros of the Metal 3.1 compiler.
_DEFINES = ("__METAL__=1", "__METAL_VERSION__=310", "__HAVE_BFLOAT__=1")

_FLAGS = (
    *("-target", "spir64", "-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-nostdinc"),
    # Variables outside functions are `constant`, half is a type, double is none.
    "-Xclang",
    "-cl-ext=+cl_khr_fp16,-cl_khr_fp64,-__opencl_c_fp64,"
    "-__opencl_c_program_scope_global_variables,-__opencl_c_device_enqueue",
    *("-Wall", "-Werror"),
    "-Werror=pre-c++17-compat",  # MSL is C++14
    # Nothing that msl.h declares is defined, and a shader need not use all of its headers.
    *("-Wno-unused-function", "-Wno-unused-const-variable", "-Wno-undefined-internal"),
    "-Wno-undefined-inline",
    *("-include", str(_HERE / "msl.h"), "-fsyntax-only", "-Xclang", "-ast-dump=json"),
)


_FILE = re.compile(r'^# \d+ "([^"<]+)"', re.MULTILINE)  # of a line marker


def _run(arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMPILER, *arguments], input=text, capture_output=True, text=True)


def check(path: Path) -> list[str]:
    """Mistakes in a shader, each with its file and line; none when it is right."""
    expanded = _run(
        [
            *("-E", "-x", "c++", "-std=c++14", "-nostdinc", "-undef"),
            *(f"-D{define}" for define in _DEFINES),
            *("-I", str(_HERE / "include"), str(path)),
        ]
    )
    if expanded.returncode != 0:
        return expanded.stderr.splitlines()
    source, errors = to_opencl(expanded.stdout)
    errors = _line_directives(expanded.stdout) + errors
    compiled = _run([*_FLAGS, "-"], source)
    if compiled.returncode != 0:
        return errors + compiled.stderr.splitlines()
    return errors + SyntaxTree(json.loads(compiled.stdout), origins(source)).errors


def _line_directives(expanded: str) -> list[str]:
    """In the files that a preprocessed text came from. Source that is compiled at run time is what
    they are, in one piece."""
    names = dict.fromkeys(_FILE.findall(expanded))
    return [
        f"{name}:{number}: error: no #line in a shader"
        for name in names
        if Path(name).is_file()
        for number, line in enumerate(Path(name).read_text().splitlines(), start=1)
        if re.match(r"\s*#\s*line\b", line)
    ]
