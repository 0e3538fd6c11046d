"""Plants faults one by one in a copy of the tree and runs the tests that could notice.

    make mutants [ONLY="barrier eps"] [TESTS_OF=commit]

First without a fault, as a control. What was found out is kept in .cache/mutants until the product,
the fault or the tests that are run change, so that a run that was stopped goes on where it was.
Fails unless every fault is caught, by a test or by the compiler.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS))

from progress import Progress  # noqa: E402

from mutants.planted import MUTANTS, Mutant  # noqa: E402

CACHE = ROOT / ".cache" / "mutants"
FOLDERS = ("csrc", "shaders", "tests", "tools", "torch_mlxnorm", "docs")
DECIDING = (*FOLDERS[:5], "setup.py", "pyproject.toml")  # about the results
PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "auto", "--dist", "worksteal")
TIMEOUT = 1200  # in seconds; who is not through by then hangs
BUILD_ERROR = re.compile(r"^(?:E +)?metal_sim\.builder\.BuildError", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    verdict: str  # "caught", "does not compile", "NOT CAUGHT"
    by: str  # a test, or how the process ended
    seconds: float


def stale(mutants: Iterable[Mutant], root: Path = ROOT) -> list[str]:
    """What is wrong with those that cannot be planted."""
    found = []
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text().count(mutant.old) if path.exists() else 0
        if count != 1:
            found.append(f"{mutant.name}: {mutant.file} has {count} times: {mutant.old}")
    return found


def judged(returncode: int | None, output: str) -> tuple[str, str]:
    """How pytest ended, None if it had to be ended, as a verdict and what was noticed by."""
    if returncode == 0:
        return "NOT CAUGHT", ""
    if returncode is None:
        return "caught", "a hang"
    if returncode < 0:
        return "caught", signal.Signals(-returncode).name
    if BUILD_ERROR.search(output):
        return "does not compile", "the simulator's compiler"
    if "while loading conftest" in output:
        return "caught", "import torch_mlxnorm"
    if found := re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - .*)?$", output, re.MULTILINE):
        return "caught", found[1]
    raise RuntimeError(f"pytest ended with {returncode}:\n{output[-2000:]}")


# ---- the copy -----------------------------------------------------------------------------------


class Copy:
    """Of the working tree, built in its own folder and tested with this Python's packages."""

    def __init__(self, tests_of: str | None) -> None:
        self.folder = CACHE / (f"tests-of-{tests_of}" if tests_of else "tree")
        self.tests_of = tests_of
        self.texts: dict[Path, bytes] = {}

    def update(self) -> None:
        """Brings it up to date, without a fault; what has not changed keeps its time, and what was
        made of it."""
        wanted = {Path(name): (ROOT / name).read_bytes() for name in self._names()}
        if self.tests_of:
            wanted = {name: text for name, text in wanted.items() if name.parts[0] != "tests"}
            wanted |= self._tests()
        for path in self._present():
            if path.relative_to(self.folder) not in wanted:
                path.unlink()
        for name, text in wanted.items():
            path = self.folder / name
            if not path.exists() or path.read_bytes() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text)
            path.chmod((ROOT / name).stat().st_mode if (ROOT / name).exists() else 0o644)
        self.texts = wanted

    def digest(self, tests: Iterable[str]) -> str:
        """Of what decides how these files of tests end."""
        kept = {Path("tests", test) for test in tests}
        others = {
            name
            for name in self.texts
            if name.parts[0] == "tests" and name not in kept
            if name.name.startswith("test_") or name.parts[1] == "mutants"
        }
        digest = hashlib.sha256()
        for name, text in sorted(self.texts.items()):
            if name.parts[0] in DECIDING and name not in others:
                digest.update(f"{name}\0{len(text)}\0".encode() + text)
        return digest.hexdigest()

    def _names(self) -> list[str]:
        folders = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
        ignored = re.compile(r"__pycache__|\.so$|\.dylib$|_build\.py$")
        files = [path for path in (*ROOT.iterdir(), *folders) if path.is_file()]
        names = [str(path.relative_to(ROOT)) for path in files]
        return [name for name in names if not ignored.search(name)]

    def _tests(self) -> dict[Path, bytes]:
        def git(*arguments: str) -> bytes:
            return subprocess.run(
                ["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE
            ).stdout

        listed = git("ls-tree", "-r", "--name-only", "-z", f"{self.tests_of}:tests")
        names = [f"tests/{name}" for name in listed.decode().split("\0") if name]
        return {Path(name): git("show", f"{self.tests_of}:{name}") for name in names}

    def _present(self) -> list[Path]:
        found = [self.folder / name for name in FOLDERS]
        files = [path for folder in found for path in folder.rglob("*") if path.is_file()]
        return [path for path in files if path.suffix != ".so" and path.name != "_build.py"]

    def run(self, *arguments: str) -> tuple[int | None, str]:
        """Python in it. Without bytecode: an edit may keep a file's size and second."""
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
            return process.returncode, output
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return None, ""
            raise

    def tested(self, tests: Sequence[str], log: Path) -> tuple[str, str]:
        """Builds what is not current and runs the tests, of those that there are."""
        status, output = self.run("tools/sources.py")
        if status != 0:
            status, output = self.run("setup.py", "-q", "build_ext", "--inplace")
            if status != 0:
                log.write_text(output)
                return "does not compile", "the compiler"
        files = [f"tests/{name}" for name in tests if (self.folder / "tests" / name).exists()]
        status, output = self.run(*PYTEST, *files)
        log.write_text(output)
        return judged(status, output)

    def meets(self, mutant: Mutant) -> tuple[str, str]:
        path = self.folder / mutant.file
        before = path.read_text()
        path.write_text(mutant.planted(before))
        try:
            return self.tested(mutant.tests, CACHE / f"{mutant.name}.log")
        finally:
            path.write_text(before)


# ---- the run ------------------------------------------------------------------------------------


class Results:
    """What is known, by the fault, or the control's tests, and a digest of what decided it."""

    def __init__(self, file: Path, digest: Callable[[Iterable[str]], str]) -> None:
        self._file, self._digest = file, digest
        self._known = json.loads(file.read_text()) if file.exists() else {}

    def _key(self, mutant: Mutant | Sequence[str]) -> str:
        tests = mutant.tests if isinstance(mutant, Mutant) else mutant
        return hashlib.sha256(f"{self._digest(tests)} {mutant!r}".encode()).hexdigest()

    def get(self, mutant: Mutant | Sequence[str]) -> Result | None:
        found = self._known.get(self._key(mutant))
        return Result(**found) if found else None

    def put(self, mutant: Mutant | Sequence[str], result: Result) -> None:
        self._known[self._key(mutant)] = dataclasses.asdict(result)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(self._known, indent=0))
        fresh.replace(self._file)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[m.name for m in MUTANTS])
    parser.add_argument("--tests-of", metavar="COMMIT", help="another commit's tests/")
    parser.add_argument("--list", action="store_true", help="the faults, planting none")
    options = parser.parse_args(arguments)
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := set(options.only) - set(by_name):
        parser.error(f"no mutant {', '.join(sorted(unknown))}; --list shows them")
    chosen = [by_name[name] for name in options.only]
    if options.list:
        print(table([(m.name, m.file, m.what) for m in chosen]))
        return 0
    if problems := stale(chosen):
        sys.exit("stale mutants:\n" + "\n".join(problems))

    copy = Copy(options.tests_of)
    copy.folder.mkdir(parents=True, exist_ok=True)
    copy.update()
    results = Results(CACHE / "results.json", copy.digest)
    progress = Progress("mutants", len(chosen) + 1)

    tests = list(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
    if results.get(tests) is None:
        begin = time.monotonic()
        verdict, by = copy.tested(tests, CACHE / "control.log")
        if verdict != "NOT CAUGHT":
            sys.exit(f"the control fails: {by}, see {CACHE / 'control.log'}")
        results.put(tests, Result(verdict, by, time.monotonic() - begin))

    rows = [("mutant", "verdict", "by", "time", "what")]
    for done, mutant in enumerate(chosen, start=1):
        progress.show(done, mutant.name)
        result = results.get(mutant)
        if result is None:
            begin = time.monotonic()
            verdict, by = copy.meets(mutant)
            result = Result(verdict, by, time.monotonic() - begin)
            results.put(mutant, result)
        seconds = f"{result.seconds:.0f} s"
        rows.append((mutant.name, result.verdict, result.by, seconds, mutant.what))
    progress.show(len(chosen) + 1)

    print(table(rows))
    verdicts = [row[1] for row in rows[1:]]
    control = results.get(tests)
    assert control is not None
    print(
        f"control: passes in {control.seconds:.0f} s; {len(verdicts)} mutants: "
        + ", ".join(
            f"{verdicts.count(v)} {v}" for v in ("caught", "does not compile", "NOT CAUGHT")
        )
    )
    return int("NOT CAUGHT" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
