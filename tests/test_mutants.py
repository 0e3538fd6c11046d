"""`make mutants` (tests/mutants): its faults fit the sources, and it tells what it is to tell."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import pytest
from mutants.planted import MUTANTS
from mutants.run import ROOT, Copy, Result, Results, judged, stale

TESTS = Path(__file__).parent


def test_every_fault_can_be_planted() -> None:
    assert stale(MUTANTS) == []
    assert len(MUTANTS) >= 30
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text()
        assert mutant.planted(text) != text
        assert all((TESTS / name).exists() for name in mutant.tests) and mutant.tests


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"old": "no such text"}, "has 0 times: no such text"),
        ({"old": "return "}, "times: return "),
        ({"file": "csrc/gone.cpp"}, "csrc/gone.cpp has 0 times: "),
    ],
)
def test_a_stale_fault_is_named(change: dict[str, str], said: str) -> None:
    (problem,) = stale([MUTANTS[0], dataclasses.replace(MUTANTS[1], name="planted", **change)])
    assert problem.startswith("planted: ") and said in problem


FAILED = "...F\n=== short test summary info ===\nFAILED tests/test_a.py::test_b[c 1] - assert 0\n"
CONFTEST = "ImportError while loading conftest '/tests/conftest.py'.\n"
BROKEN = f"{CONFTEST}E   metal_sim.builder.BuildError: clang++ …\n"


@pytest.mark.parametrize(
    ("returncode", "output", "expected"),
    [
        (0, "5 passed in 1 s\n", ("NOT CAUGHT", "")),
        (1, FAILED, ("caught", "test_a.py::test_b[c 1]")),
        (2, "ERROR tests/test_a.py - NameError\n", ("caught", "test_a.py")),
        (4, BROKEN, ("does not compile", "the simulator's compiler")),
        (4, f"{CONFTEST}E   ImportError\n", ("caught", "import torch_mlxnorm")),
        (-signal.SIGSEGV, "..", ("caught", "SIGSEGV")),
        (None, "", ("caught", "a hang")),
    ],
)
def test_what_a_run_says(returncode: int | None, output: str, expected: tuple[str, str]) -> None:
    assert judged(returncode, output) == expected


@pytest.mark.parametrize("returncode", [2, 3, 4, 5])
def test_a_run_that_tested_nothing_says_nothing(returncode: int) -> None:
    """Interrupted, broken, misused, no tests: nobody has caught anything."""
    with pytest.raises(RuntimeError, match=f"pytest ended with {returncode}"):
        judged(returncode, "no tests ran in 0.01s\n")


def test_results_are_of_a_fault_and_of_what_decided_it(tmp_path: Path) -> None:
    file, result = tmp_path / "results.json", Result("caught", "test_a.py::test_b", 1.0)
    one, other = MUTANTS[:2]
    Results(file, " ".join).put(one, result)
    assert Results(file, " ".join).get(one) == result
    assert Results(file, " ".join).get(other) is None
    assert Results(file, lambda tests: "another tree").get(one) is None
    assert Results(file, " ".join).get(dataclasses.replace(one, new="another")) is None


def test_other_tests_decide_nothing() -> None:
    names = ("tests/test_a.py", "tests/test_b.py", "tests/ops.py", "csrc/a.cpp", "docs/a.md")

    def digest(changed: str = "") -> str:
        copy = Copy(None)
        copy.texts = {Path(name): b"2" if name == changed else b"1" for name in names}
        return copy.digest(["test_a.py"])

    assert {name for name in names if digest(name) != digest()} == {
        "tests/test_a.py", "tests/ops.py", "csrc/a.cpp",
    }  # fmt: skip
