"""Whether a release holds: every check of this repository, one after another, and a table of them.

    make release-check [ONLY="lint changelog"]

What each said is in build/release-check. A check whose tool is missing has not been passed. What a
commit has passed is kept there, so that a run that was stopped goes on where it was; checks that
are named run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build/release-check"


class Check(NamedTuple):
    name: str
    command: str  # of a shell, in the root of the checkout
    tools: tuple[str, ...] = ()  # programs that it cannot do without


class Outcome(NamedTuple):
    check: str
    outcome: str  # passed, FAILED or MISSING
    seconds: float
    line: str


PYTHON = ".venv/bin/python"
CHECKS = (
    Check("lint", "make lint", ("make",)),
    Check("changelog", f"{PYTHON} tools/check_changelog.py", ("git",)),
    Check("links", f"{PYTHON} tools/check_links.py", ("git",)),
    Check("packaging", f"{PYTHON} -m pytest -q tests/test_packaging.py", ("git", "c++")),
    Check("wheels", "make wheel wheel-macos", ("make", "c++")),
    Check("docs", "make test-docs", ("make", "chromium")),
    Check("tests", "make test", ("make", "c++", "clang++-19")),
    Check("models", "make test-models", ("make", "c++")),
    Check("fuzz", "make fuzz N=5000 && make fuzz N=500 DEVICE=mps", ("make", "clang++-19")),
    Check("stress", "make stress CALLS=3000", ("make",)),
    Check("arm64", "make test-arm64", ("make", "qemu-aarch64-static", "aarch64-linux-gnu-g++")),
    Check("sanitizers", "make test-sanitizers", ("make", "c++", "clang++-19")),
    Check("versions", "make test-versions test-models-versions", ("make", "c++")),
    Check("mutants", "make mutants", ("make", "c++", "clang++-19")),
)


def last_line(text: str) -> str:
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    return lines[-1] if lines else ""


def environment() -> dict[str, str]:
    """What a missing tool would skip fails. Variables given to `make release-check` are its own:
    `make mutants` has an ONLY as well."""
    kept = {name: value for name, value in os.environ.items() if name != "ONLY"}
    return kept | {"MLXNORM_REQUIRE_TOOLS": "1", "MAKEFLAGS": "--no-print-directory"}


def run(check: Check, logs: Path) -> Outcome:
    if missing := [tool for tool in check.tools if shutil.which(tool) is None]:
        return Outcome(check.name, "MISSING", 0.0, f"needs {', '.join(missing)}")
    start = time.monotonic()
    log = logs / f"{check.name}.log"
    with log.open("w") as file:
        code = subprocess.call(
            ["sh", "-c", check.command],
            cwd=ROOT,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    outcome = "passed" if code == 0 else "FAILED"
    return Outcome(check.name, outcome, time.monotonic() - start, last_line(log.read_text()))


def table(outcomes: Sequence[Outcome]) -> str:
    rows = [f"{'check':12}{'outcome':9}{'time':>7}  last line"]
    rows += [f"{o.check:12}{o.outcome:9}{o.seconds:>5.0f} s  {o.line[:100]}" for o in outcomes]
    return "\n".join(rows)


def committed(root: Path = ROOT) -> str | None:
    """The tree of the files that are there, if it is that of the last commit."""

    def git(*arguments: str) -> str:
        return subprocess.check_output(["git", *arguments], cwd=root, text=True).strip()

    return None if git("status", "--porcelain") else git("rev-parse", "HEAD^{tree}")


class Passed:
    """The checks that a tree has passed: its outcomes in a file."""

    def __init__(self, file: Path, tree: str | None) -> None:
        self._file, self._tree = file, tree
        self._known = json.loads(file.read_text()) if file.exists() else {}

    def outcome(self, check: Check) -> Outcome | None:
        known = self._known.get(check.name)
        if known is None or known[:2] != [self._tree, check.command]:
            return None
        return Outcome(*known[2:])

    def add(self, check: Check, outcome: Outcome) -> None:
        if self._tree is not None and outcome.outcome == "passed":
            self._known[check.name] = [self._tree, check.command, *outcome]
            self._file.write_text(json.dumps(self._known, indent=1))


def release_check(
    checks: Sequence[Check], only: Sequence[str], logs: Path = LOGS, tree: str | None = None
) -> int:
    """The exit code: 0 if all of them, or of those named in ``only``, have passed."""
    if unknown := set(only) - {check.name for check in checks}:
        print(f"no check is called {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    logs.mkdir(parents=True, exist_ok=True)
    passed, outcomes = Passed(logs / "passed.json", tree), []
    for check in checks:
        if only and check.name not in only:
            continue
        outcome = None if only else passed.outcome(check)
        print(
            f"== {check.name}: {check.command if outcome is None else 'passed before'}", flush=True
        )
        if outcome is None:
            outcome = run(check, logs)
            passed.add(check, outcome)
        outcomes.append(outcome)
    print(f"\n{table(outcomes)}")
    return int(any(outcome.outcome != "passed" for outcome in outcomes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("only", nargs="*", metavar="CHECK", help="all without")
    return release_check(CHECKS, parser.parse_args().only, tree=committed())


if __name__ == "__main__":
    sys.exit(main())
