"""Builds and tests with the oldest and the newest PyTorch and Python that are supported, each in an
environment of its own under .cache/versions. Downloads several GB the first time; environments and
objects are kept, so a run that was cut off goes on where it was.

    make test-versions [VERSIONS="2.8:3.10 :3.13"] [PYTEST_ARGS="-k …"]

A version is PyTorch:Python; without PyTorch it is the newest that pip finds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "versions"


class Failure(Exception):
    pass


def interpreters(version: str) -> Iterator[Path]:
    """Where a Python may be: on the path, of pyenv, of uv."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)
    if uv := shutil.which("uv"):
        command = [uv, "python", "find", version]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode == 0:
            yield Path(run.stdout.strip())


def interpreter(version: str) -> Path:
    """One that runs: pyenv's shims lie on the path for versions that are not active, too."""
    ask = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for path in interpreters(version):
        run = subprocess.run([path, "-c", ask], capture_output=True, text=True)
        if run.stdout.strip() == version:
            return path
    raise Failure(f"no Python {version} on the path, of pyenv or of uv")


class Environment:
    def __init__(self, torch: str, python: str) -> None:
        self.torch, self.python = torch, python
        self.folder = CACHE / f"torch-{torch or 'newest'}-python-{python}"

    def run(self, step: str, *command: str | Path, cwd: Path = ROOT) -> str:
        """Runs and shows a command; returns what it said, which is kept in STEP.log."""
        print(f"== {self.folder.name}: {step}", flush=True)
        log = self.folder / f"{step}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
        if process.wait() != 0:
            raise Failure(f"{step} failed, see {log.relative_to(ROOT)}: {last_line(log)}")
        return last_line(log)

    def test(self, arguments: list[str]) -> tuple[str, str]:
        """The PyTorch that it has, and how the tests went."""
        python = self.folder / "bin/python"
        if not python.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.run("venv", interpreter(self.python), "-m", "venv", self.folder)
        requirement = f"torch=={self.torch}.*" if self.torch else "torch"
        extras = subprocess.check_output([sys.executable, ROOT / "tools/extras.py", "test"])
        wanted = [requirement, "setuptools>=77", *extras.decode().split()]
        done = self.folder / "installed"
        if not done.exists() or done.read_text() != "\n".join(wanted):
            self.run("install", python, "-m", "pip", "install", *wanted)
            done.write_text("\n".join(wanted))
        options = ("--no-build-isolation", "--no-deps", "--force-reinstall")
        os.environ["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.run("build", python, "-m", "pip", "install", *options, ROOT)
        version = subprocess.check_output(
            [python, "-c", "import torch; print(torch.__version__)"], cwd=self.folder, text=True
        ).strip()
        # From another folder: the package that is tested is the installed one.
        result = self.run(
            *("test", python, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT),
            *("-p", "no:cacheprovider", *(arguments or []), ROOT / "tests"),
            cwd=self.folder,
        )
        return version, result


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1].strip("= ") if lines else ""


def main() -> int:
    versions = os.environ.get("VERSIONS") or "2.8:3.10 :3.13"
    rows, failed, path = [], False, os.environ["PATH"]
    for torch, python in re.findall(r"([\d.]*):([\d.]+)", versions):
        environment, start = Environment(torch, python), time.monotonic()
        os.environ["PATH"] = path
        try:
            found, result = environment.test(sys.argv[1:])
        except Failure as failure:
            found, result, failed = torch or "newest", f"FAILED: {failure}", True
        rows.append((found, python, f"{time.monotonic() - start:.0f} s", result))
    print(f"\n{'PyTorch':16}{'Python':8}{'time':>8}  result")
    for found, python, seconds, result in rows:
        print(f"{found:16}{python:8}{seconds:>8}  {result}")
    return int(failed or not rows)


if __name__ == "__main__":
    sys.exit(main())
