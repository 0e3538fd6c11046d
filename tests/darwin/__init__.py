"""setup.py run as on a Mac: a Python that says it is one of Apple's, and compilers that only write
down what they are asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from beside import ENVIRONMENT

ROOT = Path(__file__).parents[2]
SIMULATED = Path(__file__).with_name("simulated.py")

TOOL = """\
#!{python} -SE
import json, os, sys
arguments = sys.argv[1:]
if "--version" in arguments:
    print("Apple clang version 17.0.0")
    sys.exit()
with open({log!r}, "a") as log:
    target = os.environ.get("MACOSX_DEPLOYMENT_TARGET")
    log.write(json.dumps([os.path.basename(sys.argv[0]), target, *arguments]) + "\\n")
for option in ("-o", "-MF"):
    if option in arguments:
        with open(arguments[arguments.index(option) + 1], "wb") as file:
            file.write(b"" if option == "-MF" else bytes(64))
"""


def touch(folder: Path, *files: str) -> None:
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@dataclass
class Command:
    """One call of a compiler."""

    tool: str
    target: str | None  # MACOSX_DEPLOYMENT_TARGET
    arguments: list[str]

    @property
    def source(self) -> str:
        (source,) = [a for a in self.arguments if a.endswith((".cpp", ".mm"))]
        return Path(source).name

    def values(self, option: str) -> set[str]:
        """What follows each `option`."""
        pairs = zip(self.arguments, self.arguments[1:], strict=False)
        return {value for name, value in pairs if name == option}

    def starting(self, prefix: str) -> set[str]:
        return {a.removeprefix(prefix) for a in self.arguments if a.startswith(prefix)}


@dataclass
class Mac:
    """A Mac in a folder: a checkout, PyTorch's files, tools."""

    folder: Path
    machine: str = "arm64"
    archs: str = "-arch arm64"  # of Python's own flags
    tools: tuple[str, ...] = ("clang", "clang++", "install_name_tool")
    program: str = TOOL  # what a tool is
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source, self.torch = self.folder / "source", self.folder / "torch"
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "_build.py")
        for name in ("csrc", "shaders", "tools", "torch_mlxnorm"):
            shutil.copytree(ROOT / name, self.source / name, ignore=ignore)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            shutil.copy(ROOT / name, self.source)
        (self.folder / "bin").mkdir()
        for tool in self.tools:
            path = self.folder / "bin" / tool
            path.write_text(
                self.program.format(python=sys.executable, log=str(self.folder / "log"))
            )
            path.chmod(0o755)

    def has(self, *files: str) -> None:
        touch(self.folder, *files)

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs setup.py."""
        inherited = {
            name: value
            for name, value in ENVIRONMENT.items()
            if not name.endswith("FLAGS") and name not in ("CC", "CXX", "OMP_PREFIX", "MAX_JOBS")
        }
        described = {
            "machine": self.machine,
            "archs": self.archs,
            "torch": str(self.torch),
            "prefix": str(self.folder / "prefix"),
        }
        return subprocess.run(
            [sys.executable, str(SIMULATED), json.dumps(described), *arguments],
            cwd=self.source,
            env=inherited
            | {"PATH": f"{self.folder / 'bin'}:{ENVIRONMENT['PATH']}", "CXX": "clang++"}
            | {"CCACHE_DISABLE": "1"}  # it would ask the compiler other things
            | self.environment,
            capture_output=True,
            text=True,
        )

    def commands(self) -> list[Command]:
        """All calls of tools so far."""
        calls = map(json.loads, (self.folder / "log").read_text().splitlines())
        return [Command(tool, target, arguments) for tool, target, *arguments in calls]
