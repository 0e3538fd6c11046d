"""`python -m torch_mlxnorm.doctor`: runs from end to end, and sees what is planted."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from beside import beside, run, side_by_side
from ops import OPS, each_op, each_op_that
from tensors import DTYPES, type_id

import torch_mlxnorm
from tools import require_checkout
from torch_mlxnorm import _examinations, doctor, reference
from torch_mlxnorm._calls import Operator, make_call, operators
from torch_mlxnorm._exactness import compare, rounds_between
from torch_mlxnorm._examinations import SECTIONS, Fact, Setting

PACKAGE = Path(torch_mlxnorm.__file__).parent
Report = dict[str, Any]


def section(report: Report, name: str) -> Report:
    return next(section for section in report["sections"] if section["name"] == name)


@pytest.fixture
def examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., Any]:
    """Runs some sections in this process: exit code, last line and report."""

    def run(*names: str, device: str = "cpu", **examinations: Any) -> tuple[int, str, Report]:
        chosen = {name: SECTIONS[name] for name in names} | examinations
        monkeypatch.setattr(doctor, "SECTIONS", chosen)
        if device == "mps":
            require_checkout()
        where = ["--sim"] if device == "mps" else ["--device", device]
        path = tmp_path / "report.json"
        code = doctor.main(["--quick", "--json", str(path), *where])
        return code, capsys.readouterr().out.splitlines()[-1], json.loads(path.read_text())

    return run


# ---- whole runs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    result: CompletedProcess[str]
    seconds: float
    folder: str  # it ran there
    report: Report | None

    def __str__(self) -> str:
        return self.result.stdout + self.result.stderr


HANGS = """if True:
    import time
    from torch_mlxnorm import doctor
    doctor.LIMIT = 1
    doctor.SECTIONS = {"slow": lambda setting: time.sleep(300)}
    doctor.main(["--device", "cpu"])"""


def doctor_with(*arguments: str, **environment: str) -> Callable[[Path], CompletedProcess[str]]:
    command = [sys.executable, "-m", "torch_mlxnorm.doctor", *arguments]
    return lambda folder: run(command, folder=folder, environment=environment)


def without_a_checkout(folder: Path) -> CompletedProcess[str]:
    shutil.copytree(PACKAGE, folder / "torch_mlxnorm")
    return doctor_with("--sim", PYTHONPATH=str(folder))(folder)


RUNS: dict[str, Callable[[Path], CompletedProcess[str]]] = {
    "simulated": doctor_with("--sim", "--json", "elsewhere.json"),
    "cpu": doctor_with("--quick", "--device", "cpu"),
    "hangs": lambda folder: run([sys.executable, "-c", HANGS], folder=folder),
    "no checkout": without_a_checkout,
    "missing tool": doctor_with("--sim", PATH="/nonexistent", METAL_SIM_CLANG=""),
    "no mps": doctor_with("--device", "mps"),
}


@beside
def whole_runs() -> dict[str, Run]:
    def whole_run(name: str) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.monotonic()
            result = RUNS[name](Path(folder))
            seconds = time.monotonic() - begin
            reports = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
            return Run(result, seconds, folder, reports[0] if reports else None)

    return dict(zip(RUNS, side_by_side(whole_run, RUNS), strict=True))


def assert_complete(done: Run, file: str) -> Report:
    assert done.result.returncode == 0, done
    *_, written, line = done.result.stdout.splitlines()
    assert line.startswith("PASS: torch_mlxnorm ") and file in written
    report = done.report
    assert report is not None
    assert report["format"] == 1 and report["verdict"] == "PASS" and report["line"] == line
    assert [section["name"] for section in report["sections"]] == list(SECTIONS)
    for part in report["sections"]:
        assert part["ok"] and part["rows"] and part["error"] is None and part["seconds"] > 0
        assert not any(row["failures"] for row in part["rows"])
    both = {(op, type_id(dtype)) for op in OPS for dtype in DTYPES}
    for name in ("values", "equal bits"):
        rows = {(row["operator"], row["dtype"]): row for row in section(report, name)["rows"]}
        assert both <= set(rows)
        if name == "values":
            assert all(row["elements"] > 0 and row["largest_error"] < 1e-2 for row in rows.values())
        else:
            assert {op for op, _ in rows} == {*OPS, "RmsNormRecord"}
            assert all(row["equal"] == row["runs"] >= 10 for row in rows.values())
    for name in ("first calls", "warm up"):
        assert {row["operator"] for row in section(report, name)["rows"]} == set(OPS)
        assert all(row["milliseconds"] > 0 for row in section(report, name)["rows"])
    timed = {row["call"] for row in section(report, "host time")["rows"]}
    assert {"RmsNormRecord", "F.rms_norm", *(f"torch_mlxnorm.{op}" for op in OPS)} < timed
    for row in section(report, "bandwidth")["rows"]:
        assert {"ours", "copy"} <= set(row["gigabytes_per_second"])
    return report


def test_on_the_cpu(whole_runs: dict[str, Run]) -> None:
    done = whole_runs["cpu"]
    report = assert_complete(done, f"{done.folder}/torch_mlxnorm-doctor.json")
    (row,) = section(report, "kernels")["rows"]
    assert row["value"] == "compiled when the extension was built"


def test_on_simulated_mps(simulated_mps: str, whole_runs: dict[str, Run]) -> None:
    require_checkout()
    done = whole_runs["simulated"]
    report = assert_complete(done, "elsewhere.json")
    assert "host time (simulated: these times say nothing about a GPU)" in done.result.stdout
    kernels = section(report, "kernels")["rows"]
    assert {row["operator"] for row in kernels} == set(OPS)
    for row in kernels:
        assert row["origin"] in ("metallib", "source")
        assert all(name.startswith(row["operator"] + "_") for name in row["seconds"])


def test_sim_needs_a_checkout(whole_runs: dict[str, Run]) -> None:
    result = whole_runs["no checkout"].result
    assert result.returncode == 1
    assert "doctor: --sim needs a checkout of torch_mlxnorm" in result.stderr
    assert "Traceback" not in result.stderr


def test_sim_names_a_missing_tool(simulated_mps: str, whole_runs: dict[str, Run]) -> None:
    require_checkout()
    result = whole_runs["missing tool"].result
    assert result.returncode == 1
    assert "doctor: --sim: clang++-19 was not found: apt-get install clang-19" in result.stderr
    assert "Traceback" not in result.stderr


def test_says_that_there_is_no_mps(whole_runs: dict[str, Run]) -> None:
    if sys.platform == "darwin":
        pytest.skip("a Mac has it")
    result = whole_runs["no mps"].result
    assert result.returncode == 1
    expected = f"doctor: there is no MPS device: torch {torch.__version__} is built without MPS\n"
    assert result.stderr == expected


def test_a_run_that_hangs_is_ended(whole_runs: dict[str, Run]) -> None:
    hung = whole_runs["hangs"]
    assert hung.result.returncode == 1 and hung.seconds < 100
    assert "Timeout" in hung.result.stderr
    assert hung.report is not None
    assert hung.report["verdict"] == "FAIL"
    assert hung.report["line"] == "FAIL: ended in section slow"


# ---- planted faults -----------------------------------------------------------------------------


def off_by_a_bit(results: Any) -> Any:
    """One element of the last result, by one unit in the last place (in float32 by 64, which leaves
    no doubt that it is not rounding)."""
    tensor = results if isinstance(results, torch.Tensor) else results[-1]
    integer, step = {4: (torch.int32, 64), 2: (torch.int16, 1)}[tensor.element_size()]
    tensor.view(-1)[-3:-2].view(integer).add_(step)
    return results


def plant(monkeypatch: pytest.MonkeyPatch, op: str, change: Callable[[Any], Any]) -> None:
    right = getattr(torch_mlxnorm, op)
    monkeypatch.setattr(torch_mlxnorm, op, lambda *a, **k: change(right(*a, **k)))


@pytest.mark.mps
@each_op
def test_a_wrong_value(examine, monkeypatch, device: str, op: Any) -> None:
    plant(monkeypatch, op.name, off_by_a_bit)
    code, line, report = examine("values", device=device)
    assert code == 1 and report["verdict"] == "FAIL" and report["line"] == line
    assert "values (" in line
    values = section(report, "values")
    assert not values["ok"]
    failed = {row["operator"] for row in values["rows"] if row["failures"]}
    assert failed == {op.name}
    for row in values["rows"]:
        for failure in row["failures"]:
            assert "1 of " in failure and " instead of " in failure


def test_a_wrong_reference(examine, monkeypatch) -> None:
    right = reference.add_rms_norm
    monkeypatch.setattr(
        reference, "add_rms_norm", lambda *a, **k: tuple(1.00001 * r for r in right(*a, **k))
    )
    code, line, _ = examine("values")
    assert code == 1
    assert "values (add_rms_norm float32, add_rms_norm float16, add_rms_norm bfloat16)" in line


def test_a_result_that_is_no_number(examine, monkeypatch) -> None:
    plant(monkeypatch, "rms_norm_triple", lambda results: [r.fill_(torch.nan) for r in results])
    code, line, report = examine("values")
    assert code == 1 and "rms_norm_triple float32" in line
    errors = {r["largest_error"] for r in section(report, "values")["rows"] if r["failures"]}
    assert errors == {"nan"}  # JSON has no NaN


@pytest.mark.mps
def test_bits_that_change(examine, monkeypatch, device: str) -> None:
    calls = itertools.count()
    plant(monkeypatch, "rms_norm_mul", lambda r: off_by_a_bit(r) if next(calls) % 7 == 3 else r)
    code, line, report = examine("equal bits", device=device)
    assert code == 1
    dtypes = ", ".join(f"rms_norm_mul {type_id(dtype)}" for dtype in DTYPES)
    assert f"equal bits ({dtypes})" in line
    for row in section(report, "equal bits")["rows"]:
        assert (row["equal"] == row["runs"]) == (row["operator"] != "rms_norm_mul")


def test_a_row_that_differs_in_the_batch(examine, monkeypatch) -> None:
    plant(monkeypatch, "add_rms_norm", lambda r: off_by_a_bit(r) if len(r[0]) == 1 else r)
    code, line, report = examine("equal bits")
    assert code == 1 and "equal bits (add_rms_norm float32" in line
    failures = [row["failures"] for row in section(report, "equal bits")["rows"][:3]]
    assert all("the first row alone has other bits" in text for each in failures for text in each)


def test_an_op_that_raises(examine, monkeypatch) -> None:
    def raises(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(torch_mlxnorm, "rms_norm_add", raises)
    code, line, report = examine("first calls", "values", "equal bits", "bandwidth")
    assert code == 1
    for name in ("first calls", "values", "equal bits", "bandwidth"):
        assert f"{name} (rms_norm_add" in line
        rows = section(report, name)["rows"]
        assert {row["operator"] for row in rows} >= set(OPS)
        failed = [row for row in rows if row["failures"]]
        assert {row["operator"] for row in failed} == {"rms_norm_add"}
        texts = [text for row in failed for text in row["failures"]]
        assert all("Traceback" in text and "RuntimeError: planted" in text for text in texts)


def test_a_section_that_raises(examine) -> None:
    def faulty(setting: Setting) -> Iterator[Fact]:
        yield Fact("before", "the fault")
        raise OSError("planted")

    code, line, report = examine(faulty=faulty, after=SECTIONS["kernels"])
    assert code == 1 and line.endswith("faulty (OSError: planted)")
    broken, after = report["sections"]
    assert "in faulty" in broken["error"] and not broken["ok"]
    assert broken["rows"][0]["name"] == "before" and after["ok"]


@pytest.mark.parametrize("options", [{}, {"casting_mode": "llama"}], ids=["gemma", "llama"])
@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@each_op
def test_the_other_casting_mode_is_noticed(op: Any, dtype: torch.dtype, options: Any) -> None:
    """Also where seldom elements may be off by a unit."""
    other = {} if options else {"casting_mode": "llama"}
    operator = Operator.named(op.name)
    if op.has_channels:
        options, other = ({"form": "rms"} | each for each in (options, other))
    call = make_call(operator, 30, 96, dtype, **options)
    rounded = rounds_between(operator.name, dtype, options)
    for results, expected in ((call(), 0), (make_call(operator, 30, 96, dtype, **other)(), 1)):
        everything = zip(results, call.reference(), call.magnitudes(), strict=True)
        wrong = sum(compare(a, e, m, rounded=rounded).wrong for a, e, m in everything)
        assert bool(wrong) == (expected and dtype != torch.float32)


@pytest.mark.parametrize("weight_offset", [0.0, -1.0])
@each_op_that(lambda op: not (op.has_second_norm_of_a_sum or op.gates))  # other means
def test_magnitudes_do_not_cancel(
    op: Any, weight_offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = make_call(Operator.named(op.name), 30, 96, torch.float32, weight_offset=weight_offset)
    for exact, magnitude in zip(call.reference(), call.magnitudes(), strict=True):
        assert type(magnitude) is torch.Tensor
        assert (exact.abs() <= magnitude * (1 + 1e-9)).all()
    # Of a difference.
    monkeypatch.setattr(reference, op.name, lambda **t: t[op.first] - t[op.first])
    (magnitude,) = call.magnitudes()
    assert torch.equal(magnitude, 2 * call.present[op.first].abs())


# ---- what it runs on ----------------------------------------------------------------------------


def test_calls_are_made_for_every_op() -> None:
    assert {operator.name for operator in operators()} == set(OPS)
    for operator in operators():
        op = OPS[operator.name]
        assert list(operator.tensors) == list(op.tensors)
        assert operator.optional == op.optional
        assert operator.outs == op.results
        assert set(operator.options) == set(op.option_names)


def fake_mlx(broken: bool = False) -> types.ModuleType:
    """As much of mlx.core as is used, made of PyTorch."""

    class Array(torch.Tensor):
        astype = torch.Tensor.to

    mx = types.ModuleType("mlx.core")
    mx.__version__ = "0.0.fake"
    mx.cpu, mx.gpu = "cpu", "gpu"
    mx.float32, mx.float16, mx.bfloat16 = torch.float32, torch.float16, torch.bfloat16
    mx.set_default_device = lambda device: None
    mx.random = types.SimpleNamespace(normal=lambda shape: torch.randn(shape).as_subclass(Array))
    mx.ones = lambda shape: torch.ones(shape).as_subclass(Array)
    mx.eval = mx.async_eval = lambda *arrays: None
    mx.synchronize = lambda: None
    if not broken:
        norm = torch.nn.functional.rms_norm
        mx.fast = types.SimpleNamespace(rms_norm=lambda x, w, eps: norm(x, w.shape, w, eps))
    return mx


@pytest.mark.parametrize("broken", [False, True])
def test_mlx(examine, monkeypatch, broken: bool) -> None:
    package = types.ModuleType("mlx")
    package.core = fake_mlx(broken)
    monkeypatch.setitem(sys.modules, "mlx", package)
    monkeypatch.setitem(sys.modules, "mlx.core", package.core)
    code, line, report = examine("environment", "bandwidth")
    versions = {row["name"]: row["value"] for row in section(report, "environment")["rows"]}
    assert versions["mlx"] == "0.0.fake"
    rows = section(report, "bandwidth")["rows"]
    if broken:
        assert code == 1 and "bandwidth (rms_norm 512x2816 float32" in line
        for row in rows:
            has_no_fast = any("AttributeError: module 'mlx.core'" in f for f in row["failures"])
            assert has_no_fast == (row["operator"] == "rms_norm")
    else:
        assert code == 0
        for row in rows:
            rates = row["gigabytes_per_second"]
            assert ("mlx" in rates) == (row["operator"] == "rms_norm")
            assert all(rate > 0 for rate in rates.values())


def test_without_mlx(examine, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx", None)
    assert _examinations.mlx() is None


def test_says_what_the_extension_was_built_for(examine, monkeypatch) -> None:
    record = types.SimpleNamespace(TORCH="2.13.0", METALLIBS=("rms_norm", "rms_norm_add"))
    monkeypatch.setattr(torch_mlxnorm, "_build", record, raising=False)
    _, _, report = examine("environment")
    facts = {row["name"]: row["value"] for row in section(report, "environment")["rows"]}
    assert facts["built for"] == "torch 2.13.0, metallibs: rms_norm, rms_norm_add"


def test_names_a_mac(monkeypatch, tmp_path: Path) -> None:
    sysctl = tmp_path / "sysctl"
    sysctl.write_text(
        '#!/bin/sh\ncase "$1 $2" in\n"-n machdep.cpu.brand_string") echo "Apple M3" ;;\n'
        '"-n hw.memsize") echo 8589934592 ;;\n*) exit 1 ;;\nesac\n'
    )
    sysctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _examinations.processor() == "Apple M3"
    assert _examinations.memory() == 8 * 2**30
