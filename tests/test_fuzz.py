"""A slice of `make fuzz`, and that it finds what is planted."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from random import Random
from subprocess import CompletedProcess

import fuzz
import pytest
import torch
from beside import beside, run
from cases import Case, Layout, check_case, random_case
from ops import OPS
from tensors import POISON

import torch_mlxnorm

TESTS = Path(__file__).parent


@pytest.mark.parametrize("block", range(4))
def test_a_slice_of_the_fuzzer(device: str, block: int) -> None:
    size = 100 if device == "cpu" else 10
    failures = list(fuzz.run_cases(7, range(block * size, (block + 1) * size), device))
    assert not failures, "\n".join(f.report(device, 7) for f in failures)


def test_cases_are_the_same_in_every_run_and_can_be_printed() -> None:
    for number in range(200):
        case = fuzz.case_of(0, number, "cpu")
        assert case == fuzz.case_of(0, number, "cpu")
        names = {"nan": float("nan"), "inf": float("inf"), "torch": torch}
        again = eval(repr(case), names | {"Case": Case, "Layout": Layout})
        assert repr(again) == repr(case)


def test_every_kind_of_case_is_drawn() -> None:
    cases = [random_case(Random(seed), long_rows=0.02) for seed in range(3000)]
    assert {case.op for case in cases} == set(OPS)
    assert len({case.dtype for case in cases}) == 3
    for name, op in OPS.items():
        those = [case for case in cases if case.op == name]
        assert {m for case in those for m in case.missing} == set(op.optional)
        assert {case.scale for case in those} == set(op.scale_kinds)
        assert {n for case in those for n in case.kept} == set(op.broadcasting)
        in_place = {pair for case in those for pair in case.in_place.items()}
        assert in_place == set(op.in_place)
        for option in op.option_names:
            assert len({case.options.get(option) for case in those}) > 1
    assert any(0 in case.leading for case in cases) and any(case.dim > 8000 for case in cases)


def test_a_run_that_was_stopped_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, int]] = []

    def run_blocks(seed: int, first: int, stop: int, device: str, jobs: int):
        asked.append((first, stop))
        failures = [fuzz.Failure(3, "off", "Case()")] if first == 0 else []
        yield min(first + 200, stop), failures
        if len(asked) == 1:
            raise RuntimeError("power cut")
        yield stop, []

    monkeypatch.setattr(fuzz, "STATE", tmp_path)
    monkeypatch.setattr(fuzz, "run_blocks", run_blocks)
    with pytest.raises(RuntimeError, match="power cut"):
        fuzz.main(["500"])
    assert fuzz.main(["500"]) == 1  # a failure is not forgotten
    assert asked == [(0, 500), (200, 500)]
    assert "fuzz cpu: 500 cases, seed 0: 1 failures" in capsys.readouterr().out
    monkeypatch.setattr(fuzz, "fingerprint", lambda: "of other code")
    fuzz.main(["500", "--seed", "0"])
    assert asked[-1] == (0, 500)


# ---- planted faults -----------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, spoiled) -> None:
    """Replaces the function of an op by spoiled(right function, arguments)."""
    right = getattr(torch_mlxnorm, name)
    monkeypatch.setattr(
        torch_mlxnorm, name, lambda *a, **k: spoiled(lambda **w: right(*a, **{**k, **w}), k)
    )


def wrong_last_element(right, arguments):
    out = right()
    first = out if isinstance(out, torch.Tensor) else out[0]
    if first.numel() > 0 and first.shape[-1] % 16 == 15:
        first.view(-1)[-1] *= 1.02
    return out


def another_eps(right, arguments):
    return right(eps=1.05 * arguments.get("eps", 1e-6))


def writes_past_the_end(right, arguments):
    result = right()
    out = arguments.get("out")
    last = out[-1] if isinstance(out, (tuple, list)) else out
    storage = last.untyped_storage() if last is not None else None
    if last is not None and last.numel() > 0 and storage.nbytes() > last.nbytes:
        last.as_strided((last.numel() + 1,), (1,))[-1] = POISON + 128
    return result


def writes_to_an_argument(right, arguments):
    result = right()
    weight = next((t for name, t in arguments.items() if "weight" in name and t is not None), None)
    if weight is not None and weight.numel() % 2:
        weight.view(-1)[0] = 0
    return result


def swallows_nan(right, arguments):
    result = right()
    for out in (result,) if isinstance(result, torch.Tensor) else result:
        out.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return result


def misreads_strided_rows(right, arguments):
    name = next(iter(arguments))
    x = arguments[name]
    if x.dim() > 2 and x.numel() > 0 and x.stride(0) < x.stride(1):
        x = x.contiguous().roll(1, 0)
    return right(**{name: x})


FAULTS = [
    wrong_last_element,
    another_eps,
    writes_past_the_end,
    writes_to_an_argument,
    swallows_nan,
    misreads_strided_rows,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["rms_norm_add", "add_rms_norm"])
def test_finds_a_planted_fault(monkeypatch: pytest.MonkeyPatch, name: str, fault) -> None:
    spoil(monkeypatch, name, fault)
    found = next(fuzz.run_cases(0, range(3000), "cpu"), None)
    assert found is not None and f"op={name!r}" in found.case
    assert f"CASE={found.number}" in found.report("cpu", 0)
    monkeypatch.undo()
    check_case(fuzz.case_of(0, found.number, "cpu"), "cpu")  # it was the plant


def test_minimises(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "rms_norm_mul", wrong_last_element)
    found = next(fuzz.run_cases(0, range(3000), "cpu"))
    smallest = eval(found.case, {"Case": Case, "torch": torch})
    assert smallest == Case("rms_norm_mul", (), 15, smallest.dtype, smallest.seed)


def die_at_dim_17(device: str) -> None:
    fuzz.prepare(device)
    right = torch_mlxnorm.add_rms_norm
    torch_mlxnorm.add_rms_norm = lambda *a, **k: (
        os._exit(11) if k["x"].shape[-1] == 17 else right(*a, **k)
    )


def first_deadly_case() -> int:
    cases = (fuzz.case_of(0, number, "cpu") for number in itertools.count())
    return next(i for i, c in enumerate(cases) if c.op == "add_rms_norm" and c.dim == 17)


CRASH = """
import fuzz
from test_fuzz import die_at_dim_17, first_deadly_case

deadly = first_deadly_case()
found = fuzz.find_crash(0, deadly - 3, deadly + 5, "cpu", prepare=die_at_dim_17)
print(found.number - deadly, found.text)
"""


@beside
def crash() -> CompletedProcess[str]:
    return run([sys.executable, "-c", CRASH], environment={"PYTHONPATH": str(TESTS)})


def test_names_the_case_that_ends_its_process(crash: CompletedProcess[str]) -> None:
    assert crash.stdout == "0 the process died\n", crash.stderr
