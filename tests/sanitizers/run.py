"""`make test-sanitizers`: the extension and the Metal simulator under AddressSanitizer,
UndefinedBehaviorSanitizer and ThreadSanitizer.

For each: build both halves into .cache/sanitizers/KIND (g++ makes the extension, clang the
simulated Metal half; both report to g++'s runtime, which is preloaded, since Python and PyTorch are
not instrumented), plant faults in a library of the same flags and see them reported, run tests.
A report, a test that fails or a plant that is missed fails the run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS))

from metal_sim import toolchain  # noqa: E402

SUPPRESSIONS = TESTS / "sanitizers"
GCC = os.environ.get("CXX", "c++")  # what setup.py takes


@dataclass(frozen=True)
class Sanitizer:
    kind: str
    runtime: str
    variable: str  # of its options
    options: str
    faults: dict[str, str]  # a function of faults.cpp, and what the report says
    tests: tuple[str, ...]  # pytest's arguments
    threads: int  # of OpenMP

    @property
    def folder(self) -> Path:
        return ROOT / ".cache" / "sanitizers" / self.kind


EVERY_OP = ("test_fuzz.py", "test_stress.py", "test_out.py", "test_errors.py", "test_record.py")
SANITIZERS = [
    Sanitizer(
        "address",
        "libasan.so",
        "ASAN_OPTIONS",
        # Leaks: Python and PyTorch keep what they made until the process ends. Fake stacks: the
        # simulator's fibers have stacks of their own.
        "detect_leaks=0:detect_stack_use_after_return=0",
        {"heap_overflow": "heap-buffer-overflow"},
        (*EVERY_OP, "test_layouts.py"),
        threads=2,
    ),
    Sanitizer(
        "undefined",
        "libubsan.so",
        "UBSAN_OPTIONS",
        "print_stacktrace=1",
        {"signed_overflow": "signed integer overflow", "misaligned_load": "misaligned address"},
        (*EVERY_OP, "test_layouts.py"),
        threads=2,
    ),
    Sanitizer(
        "thread",
        "libtsan.so",
        "TSAN_OPTIONS",
        # What PyTorch, Python and OpenMP do among themselves is not watched, so neither are their
        # calls of memcpy and the like; OpenMP has one thread, and Python's are the ones that meet.
        f"ignore_noninstrumented_modules=1:suppressions={SUPPRESSIONS / 'thread.supp'}",
        {"data_race": "data race"},
        ("test_stress.py", "test_record.py", "test_fuzz.py"),
        threads=1,
    ),
]


def run(command: list[str], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, text=True, **options)


def gcc_file(name: str) -> str:
    command = [GCC, f"-print-file-name={name}"]
    return run(command, capture_output=True, check=True).stdout.strip()


# ---- building -----------------------------------------------------------------------------------


def build(sanitizer: Sanitizer) -> None:
    folder = sanitizer.folder
    environment = os.environ | {"MLXNORM_SANITIZER": sanitizer.kind}
    for command, log in [
        (["setup.py", "-q", "build", "--build-lib", str(folder)], "extension.log"),
        (["-c", _BUILD_SIMULATOR.format(tests=str(TESTS))], "simulator.log"),
    ]:
        with (folder / log).open("w") as output:
            result = run(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if result.returncode != 0:
            sys.exit(f"{folder / log}:\n" + (folder / log).read_text()[-3000:])
    for half, compiler in halves(sanitizer).items():
        flags = ["-O1", "-g", "-shared", "-fPIC", str(TESTS / "sanitizers" / "faults.cpp")]
        run([*compiler, *flags, "-o", str(folder / f"faults-{half}.so")], check=True)


_BUILD_SIMULATOR = """
import sys
sys.path.insert(0, {tests!r})
from metal_sim import product
product.load(only_build=True)
"""


def halves(sanitizer: Sanitizer) -> dict[str, list[str]]:
    """Compilers of the two, with the flags."""
    os.environ["MLXNORM_SANITIZER"] = sanitizer.kind
    flags = toolchain.sanitizer_flags()
    del os.environ["MLXNORM_SANITIZER"]
    return {
        "extension": [GCC, f"-fsanitize={sanitizer.kind}"],
        "simulator": [toolchain.compiler(), *flags, "-fno-sanitize-link-runtime"],
    }


# ---- running ------------------------------------------------------------------------------------


def environment(sanitizer: Sanitizer, reports: Path) -> dict[str, str]:
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    preloaded = [gcc_file(sanitizer.runtime), gcc_file("libstdc++.so")]
    return os.environ | {
        "LD_PRELOAD": " ".join(preloaded),
        sanitizer.variable: f"{sanitizer.options}:log_path={reports}/report",
        "MLXNORM_SANITIZER": sanitizer.kind,
        "OMP_NUM_THREADS": str(sanitizer.threads),
        "PYTHONMALLOC": "malloc",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


HEADLINE = re.compile(
    r"^(?:==\d+==ERROR: |WARNING: ThreadSanitizer: |\S+: runtime error: ).*", re.MULTILINE
)


def reports_in(folder: Path) -> list[str]:
    """What was reported, one line each."""
    texts = [path.read_text(errors="replace") for path in sorted(folder.glob("report*"))]
    line = re.compile(
        r"^(?:==\d+==ERROR: |WARNING: ThreadSanitizer: |\S+: runtime error: ).*", re.M
    )
    return [match.group() for text in texts for match in line.finditer(text)]


def missed_faults(sanitizer: Sanitizer) -> list[str]:
    """Planted faults that were not reported, of each half."""
    missed = []
    for half in halves(sanitizer):
        for function, text in sanitizer.faults.items():
            reports = sanitizer.folder / "planted"
            library = sanitizer.folder / f"faults-{half}.so"
            run(
                [
                    sys.executable,
                    "-c",
                    f"import ctypes; ctypes.CDLL({str(library)!r}).{function}()",
                ],
                env=environment(sanitizer, reports),
                capture_output=True,
            )
            if not any(text in report for report in reports_in(reports)):
                missed.append(f"{function} ({half})")
    return missed


def run_tests(sanitizer: Sanitizer, arguments: list[str]) -> tuple[str, int]:
    """Pytest's last line and exit status."""
    tests = arguments or [str(TESTS / name) for name in sanitizer.tests]
    # A small leak is nothing beside a sanitizer's own memory.
    tests += ["-k", "not test_finds_a_leak"] if not arguments else []
    # From the folder of the instrumented package, which is imported in place of the other.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    log = sanitizer.folder / "tests.log"
    with log.open("w") as output:
        result = run(
            command,
            cwd=sanitizer.folder,
            env=environment(sanitizer, sanitizer.folder / "reports"),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    lines = log.read_text(errors="replace").splitlines() or [""]
    return lines[-1].strip("= "), result.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = [sanitizer.kind for sanitizer in SANITIZERS]
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"of {', '.join(kinds)}; all")
    parser.add_argument("--tests", action="append", default=[], help="for pytest, in place of ours")
    options = parser.parse_args()
    rows, failed = [], False
    for sanitizer in SANITIZERS:
        if options.kinds and sanitizer.kind not in options.kinds:
            continue
        sanitizer.folder.mkdir(parents=True, exist_ok=True)
        print(f"{sanitizer.kind}: building", flush=True)
        build(sanitizer)
        print(f"{sanitizer.kind}: planted faults", flush=True)
        missed = missed_faults(sanitizer)
        print(f"{sanitizer.kind}: tests", flush=True)
        begin = time.monotonic()
        summary, status = run_tests(sanitizer, options.tests)
        found = reports_in(sanitizer.folder / "reports")
        failed |= bool(missed or found or status)
        planted = f"MISSED {', '.join(missed)}" if missed else "all found"
        seconds = f"{time.monotonic() - begin:.0f} s"
        rows.append((sanitizer.kind, planted, str(len(found)), summary, seconds))
        for report in list(dict.fromkeys(found))[:20]:
            print(f"    {report}")
    heads = ("sanitizer", "planted faults", "reports", "tests", "time")
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print("FAILED" if failed else "clean")
    return failed


if __name__ == "__main__":
    sys.exit(main())
