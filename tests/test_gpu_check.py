"""What `make gpu-check` reads from compute-sanitizer; the rest of it needs an NVIDIA GPU."""

from __future__ import annotations

from gpu import check
from mutants.planted import MUTANTS

CLEAN = "========= COMPUTE-SANITIZER\n{}\n========= ERROR SUMMARY: 0 errors\n"
RACE = """\
========= Error: Race reported between Write access at threadgroup_sum in reduce.h:44
========= RACECHECK SUMMARY: 4 hazards displayed (4 errors, 0 warnings)
"""


def test_summaries_of_compute_sanitizer() -> None:
    assert check.errors_in(CLEAN) == 0
    assert check.errors_in(CLEAN + "========= ERROR SUMMARY: 1 error\n") == 1
    assert check.errors_in(RACE) == 4
    assert check.errors_in("========= COMPUTE-SANITIZER\n{}\n") is None


def test_planted_faults_are_mutants_of_the_shaders() -> None:
    files = {mutant.name: mutant.file for mutant in MUTANTS}
    assert all(files[name].startswith("shaders/") for name in check.PLANTED)
