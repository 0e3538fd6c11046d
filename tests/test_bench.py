"""python -m torch_mlxnorm.bench: all that it times computes the same, and it tells what it timed.
No test asks how fast anything is."""

from __future__ import annotations

import functools
import itertools
import json
import mmap
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from beside import beside, run, side_by_side
from tensors import DTYPES, type_id

from tools import require_checkout, require_module
from torch_mlxnorm._timing import Times
from torch_mlxnorm.bench import __main__ as bench
from torch_mlxnorm.bench import calls, fresh, plain, report, threads, two_builds
from torch_mlxnorm.bench.case import Case, as_tuple
from torch_mlxnorm.bench.compositions import COMPOSITIONS
from torch_mlxnorm.bench.demo import comparisons
from torch_mlxnorm.bench.peers import COPY, OURS, PEERS, PLAIN
from torch_mlxnorm.bench.shapes import USES, Line, lines_by_model, lines_by_shape, of_shape

F32, _, BF16 = DTYPES

# Every op as it is by shape, and every use of a model, small.
PLACES = [of_shape(op, "3x64", F32) for op in COMPOSITIONS]
PLACES += [Line(use, 2 * use.rows_per_token, F32) for use in USES]
each_place = pytest.mark.parametrize(
    "line", PLACES, ids=[f"{line.use.op}-{line.use.model}-{line.use.name}" for line in PLACES]
)


def results_in_outs(case: Case, call: Callable[[], object]) -> tuple[torch.Tensor, ...]:
    for out in case.outs.values():
        out.fill_(float("nan"))
    call()
    return tuple(case.outs.values())


def right(case: Case, results: object) -> bool:
    return not any(comparison.wrong for comparison in comparisons(case, results))


# ---- what is timed ------------------------------------------------------------------------------


@each_place
def test_all_candidates_compute_the_same(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(line)
    assert right(case, results_in_outs(case, case.ours()))
    assert right(case, case.eager()())
    if case.composition.from_singles is not None:
        assert right(case, results_in_outs(case, case.singles()))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    assert right(case, results_in_outs(case, case.compiler()(case)))


@each_place
def test_wrong_results_are_told(line: Line) -> None:
    case = Case(line)
    assert not right(case, tuple(1.0001 * result for result in as_tuple(case.eager()())))


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=type_id)
@each_place
def test_in_16_bits(line: Line, dtype: torch.dtype) -> None:
    """Ours is right, and what is beside it gives such tensors."""
    case = Case(Line(line.use, line.rows, dtype))
    assert right(case, results_in_outs(case, case.ours()))
    for result, out in zip(as_tuple(case.eager()()), case.outs.values(), strict=True):
        assert result.shape == out.shape and result.dtype == out.dtype
    if case.composition.from_singles is not None:
        for out in results_in_outs(case, case.singles()):
            assert out.isfinite().all()


def test_the_copies_of_a_case_share_no_memory() -> None:
    case = Case(of_shape("add_rms_norm", "3x64", F32))
    other = case.clone()
    for mine, theirs in ((case.inputs, other.inputs), (case.outs, other.outs)):
        present = [(mine[name], theirs[name]) for name in mine if mine[name] is not None]
        assert present and all(a.data_ptr() != b.data_ptr() for a, b in present)
    assert torch.equal(case.inputs["x"], other.inputs["x"])
    (y, r), (v, s) = results_in_outs(case, case.ours()), results_in_outs(other, other.ours())
    assert torch.equal(y, v) and torch.equal(r, s)


@pytest.mark.parametrize(
    ("op", "dtype", "read", "written"),
    [
        ("rms_norm", F32, 4 * (3 * 64 + 64), 4 * 3 * 64),
        ("rms_norm", BF16, 2 * (3 * 64 + 64), 2 * 3 * 64),
        ("add_rms_norm", F32, 4 * (2 * 3 * 64 + 64), 4 * 2 * 3 * 64),
        ("qk_norm_rope", BF16, 2 * (3 * 40 * 64 + 2 * 64 + 2 * 3 * 32), 2 * 3 * 40 * 64),
        (
            "fused_moe_wsum_post_ff_norm2_endlayer", F32,
            4 * (3 * 8 * 64 + 3 * 8 + 2 * 3 * 64 + 2 * 64 + 1), 4 * 2 * 3 * 64,
        ),
    ],
)  # fmt: skip
def test_bytes(op: str, dtype: torch.dtype, read: int, written: int) -> None:
    case = Case(of_shape(op, "3x64", dtype))
    assert (case.bytes_read, case.bytes_written) == (read, written)


def test_lines() -> None:
    for device in ("cpu", "mps", "cuda"):
        by_model = list(lines_by_model(device))
        assert all(use in [line.use for line in by_model] for use in USES)
        both = {line.use.op for line in (*lines_by_shape(device), *by_model)}
        assert both == set(COMPOSITIONS)
    assert of_shape("rms_norm", "3x64", BF16).shape == "3x64"
    assert of_shape("qk_norm_rope", "3x64", BF16).shape == "3x32x64"
    assert of_shape("fused_moe_wsum_post_ff_norm2_endlayer", "3x64", BF16).shape == "3x64"


# ---- the plain kernel ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "planes"),
    [
        ("rms_norm", (1, 1)),
        ("add_rms_norm", (2, 2)),
        ("rms_norm_triple", (1, 3)),
        ("fused_moe_wsum_post_ff_norm2_endlayer", (10, 2)),
    ],
)
def test_streams(op: str, planes: tuple[int, int]) -> None:
    case = Case(of_shape(op, "64x2048", BF16))
    streams = plain.Streams(case.bytes_read, case.bytes_written, len(case.outs))
    assert (streams.reads, streams.writes) == planes
    tensors = streams.tensors("cpu")
    assert tuple(len(tensor) for tensor in tensors) == planes
    total = case.bytes_read + case.bytes_written
    assert abs(sum(tensor.nbytes for tensor in tensors) - total) <= plain.WORD * sum(planes) / 2


def test_streams_of_next_to_nothing() -> None:
    assert plain.Streams(1, 1000, 1).reads == 1
    assert plain.Streams(2, 2, 1).words == 1


def test_plain_kernel_reads_and_writes_all() -> None:
    streams = plain.Streams(3 * 16 * 50, 2 * 16 * 50, 2)
    (kernel,) = plain.kernels(streams, "cpu")
    read, written = streams.tensors("cpu")
    assert read.shape == (3, 200) and written.shape == (2, 200)
    bits = read.view(torch.int32)
    bits.copy_(torch.randint(2**31, bits.shape))
    kernel(read, written)
    expected = bits[0] ^ bits[1] ^ bits[2]
    assert all(torch.equal(plane, expected) for plane in written.view(torch.int32))


def test_plain_shader_has_what_it_is_told() -> None:
    text = plain.source(**plain.defines(plain.Streams(32, 16, 1), 4))
    assert text.startswith("#define READS 2\n#define WRITES 1\n#define PER_THREAD 4\n")


# ---- what is told -------------------------------------------------------------------------------


def made_up(line: Line, us: float, **over: float) -> dict[str, Any]:
    """Its record, had it taken so long, and the others so many times as long."""
    seconds = [us * 1e-6 * factor for factor in (0.9, 1.0, 1.0, 1.0, 1.1)]
    times = {OURS: seconds} | {n: [ratio * s for s in seconds] for n, ratio in over.items()}
    return report.record(line, Case(line), Times(times))


SMALL, LARGE = of_shape("rms_norm", "1x64", F32), Line(USES[-1], 64, BF16)
RECORDS = [
    made_up(SMALL, 2.0, eager=5.0, plain=0.5, copy=0.25),
    made_up(LARGE, 4000.0, singles=1.5, eager=9.0, plain=0.9, copy=1.2),
]
MACHINE = {
    "device": "cpu",
    "name": "a processor",
    "torch": "2.13.0",
    "torch_mlxnorm": "0.1.0",
    "date": "2026-11-30",
}


def test_record() -> None:
    small = RECORDS[0]
    assert small["us"][1] == 2.0 and small["us"] == sorted(small["us"])
    assert small["over"]["eager"] == [5.0, 5.0, 5.0]
    assert small["bytes"] == 3 * 64 * 4 and small["gb_per_s"] == 0.4
    assert (small["op"], small["shape"], small["dtype"]) == ("rms_norm", "1x64", "float32")
    assert RECORDS[1]["model"] == USES[-1].model and RECORDS[1]["where"] == USES[-1].name


def test_table_on_screen() -> None:
    assert [report.ratio(RECORDS[0], name) for name in report.COLUMNS] == [
        "0.50", "0.25", "-", "5.00x", "-", "-",
    ]  # fmt: skip
    for line, record in zip((SMALL, LARGE), RECORDS, strict=True):
        assert len(report.place(line)) == len(report.PLACE_HEAD)
        assert len(report.cells(record)) == len(report.CELLS_HEAD)
    assert "4000.00us" in report.cells(RECORDS[1])
    assert USES[-1].model in report.place(LARGE)


def test_json(tmp_path: Path) -> None:
    report.write_json(tmp_path / "bench.json", MACHINE, RECORDS)
    assert report.read_json(tmp_path / "bench.json") == (MACHINE, RECORDS)
    assert len((tmp_path / "bench.json").read_text().splitlines()) == 3 + len(RECORDS)


def test_plot(tmp_path: Path) -> None:
    require_module("matplotlib", "pip install matplotlib")
    paths = [tmp_path / "bench.png", tmp_path / "bench.svg"]
    made = []
    for _ in range(2):
        report.plot(paths, MACHINE, RECORDS)
        made.append([path.read_bytes() for path in paths])
    assert made[0] == made[1]  # no date, no random names
    png, svg = made[0]
    assert png.startswith(b"\x89PNG")
    for text in ("rms_norm", LARGE.use.op, "float32", "bfloat16", "copy", "a processor"):
        assert text in svg.decode(), text


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--op nothing", "argument --op: invalid choice: 'nothing'"),
        ("--dtype float64", "argument --dtype: invalid choice: 'float64'"),
        ("--peers nobody", "argument --peers: invalid choice: 'nobody'"),
        ("--device tpu", "argument --device: invalid choice: 'tpu'"),
        ("--shape 64", "argument --shape: '64' is not ROWSxDIM"),
        ("--shape 0x64", "argument --shape: '0x64' is not ROWSxDIM"),
        ("--shape 2x64 --set models", "--shape or --set, not both"),
        ("--turns 1", "argument --turns: at least 2"),
        ("--json /nonexistent/file.json", "there is no folder /nonexistent"),
        ("--device cuda --op qk_norm_rope --set shapes", "no shape of these ops"),
    ],
)
def test_wrong_arguments(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.parse(arguments.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_plot_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        bench.parse(["--plot", "bench"])
    assert "--plot needs matplotlib" in capsys.readouterr().err


def chosen(arguments: str) -> list[Line]:
    return bench.parse(["--device", "cpu", *arguments.split()]).lines


def test_chosen_lines() -> None:
    assert chosen("") == sorted(chosen(""), key=lambda line: list(COMPOSITIONS).index(line.use.op))
    everything = chosen("--set shapes") + chosen("--set models")
    assert len(chosen("")) == len(everything) and all(line in everything for line in chosen(""))
    assert {line.dtype for line in chosen("--dtype float16")} == {torch.float16}
    lines = chosen("--op rms_norm add_rms_norm --shape 2x64 1x32 --dtype float32 bfloat16")
    assert len(lines) == 8 and {line.shape for line in lines} == {"2x64", "1x32"}
    of_models = chosen("--op gated_rms_norm --set models")
    assert {line.use.model for line in of_models} == {
        use.model for use in USES if use.op == "gated_rms_norm"
    }


# ---- whole runs ---------------------------------------------------------------------------------

BENCH = "torch_mlxnorm.bench"
ONE_LINE = "--device cpu --op rms_norm --shape 2x64 --dtype float32 --turns 3 --peers eager"


@beside
def bench_runs() -> dict[str, tuple[CompletedProcess[str], str]]:
    """Programs with their arguments, FILE being one that they write; and what is in it."""
    commands = {
        "a line": f"{BENCH} {ONE_LINE} --json FILE",
        "calls": f"{BENCH}.calls --turns 2 --json FILE",
        "threads": f"{BENCH}.threads --turns 2 --json FILE",
        "fresh": f"{BENCH}.fresh --turns 6 --json FILE",  # a heap that grew is used again
        "mps": f"{BENCH} --device mps",
        "cuda": f"{BENCH} --device cuda",
        "demo on mps": f"{BENCH}.demo --device mps",
    }

    def outcome(command: str) -> tuple[CompletedProcess[str], str]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "file.json")
            arguments = [str(file) if a == "FILE" else a for a in command.split()]
            environment = {"CUDA_VISIBLE_DEVICES": ""}
            done = run([sys.executable, "-m", *arguments], environment=environment)
            return done, file.read_text() if file.exists() else ""

    return dict(zip(commands, side_by_side(outcome, commands.values()), strict=True))


Runs = dict[str, tuple[CompletedProcess[str], str]]


def test_a_line_from_the_command_line(bench_runs: Runs) -> None:
    done, text = bench_runs["a line"]
    assert done.returncode == 0, done.stderr
    written = json.loads(text)
    (record,) = written["lines"]
    assert (record["op"], record["shape"], record["dtype"]) == ("rms_norm", "2x64", "float32")
    assert set(record["over"]) == {PLAIN, COPY, "eager"}
    assert record["bytes"] == 4 * (2 * 2 * 64 + 64)
    machine, head, op, row = done.stdout.splitlines()
    assert machine.startswith(written["machine"]["name"])
    assert head.split() == ["shape", "dtype", "time", "GB/s", PLAIN, COPY, *PEERS]
    assert op == "rms_norm" and row.split()[:2] == ["2x64", "float32"]
    if sys.platform == "linux":  # it started itself anew, as a module
        assert written["machine"]["name"].endswith("1 thread, freed memory kept")


def test_calls_and_threads(bench_runs: Runs) -> None:
    done, text = bench_runs["calls"]
    assert done.returncode == 0, done.stderr
    lines = json.loads(text)["lines"]
    together = {dim: calls.calls(dim) for dim in calls.DIMS}
    every = {(call, dim): None for dim in together for calls_ in together[dim] for call in calls_}
    assert [(line["call"], line["dim"]) for line in lines] == list(every)
    for some in itertools.chain(*together.values()):
        assert set(some) >= {calls.baseline(call) for call in some} - {None}
    assert all(("of" in line) == (calls.baseline(line["call"]) is not None) for line in lines)
    done, text = bench_runs["threads"]
    assert done.returncode == 0, done.stderr
    assert [line["call"] for line in json.loads(text)["lines"]] == list(threads.calls())


@pytest.mark.skipif(sys.platform != "linux", reason="how glibc gets memory")
def test_fresh_results(bench_runs: Runs) -> None:
    done, text = bench_runs["fresh"]
    assert done.returncode == 0, done.stderr
    lines = json.loads(text)["lines"]
    faults = {(line["way"], line["call"]): line["faults"] for line in lines}
    assert len(faults) == len(fresh.WAYS) * 3
    pages = 4096 * 4096 * 4 // mmap.PAGESIZE
    assert faults["as it is", "rms_norm"] >= pages // 512  # huge pages, if the system gives them
    for without in (("as it is", "rms_norm.out"), ("freed memory kept", "rms_norm")):
        assert faults[without] < pages // 512


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(bench_runs: Runs) -> None:
    require_checkout()
    expected = {
        "cuda": "--device cuda: there is no NVIDIA GPU",
        "mps": "--device mps: PyTorch finds no Apple GPU",
        "demo on mps": "demo: --device mps: PyTorch finds no Apple GPU",
    }
    if sys.platform == "darwin":
        expected = {"cuda": expected["cuda"]}
    for name, message in expected.items():
        done, _ = bench_runs[name]
        assert done.returncode == 1
        assert done.stderr.startswith(message) and "Traceback" not in done.stderr


OTHER_BUILD = """
import torch
library = torch.library.Library("mlxnorm", "DEF")
library.define("rms_norm.out(Tensor x, Tensor weight, *, Tensor(a!) out) -> ()")
library.impl("rms_norm.out", lambda x, weight, out: None, "CompositeExplicitAutograd")
"""


def test_another_build_needs_no_bench(tmp_path: Path) -> None:
    """A build is asked for its ops alone: what it has of this folder, if anything, is not used."""
    (tmp_path / "torch_mlxnorm").mkdir()
    (tmp_path / "torch_mlxnorm/__init__.py").write_text(OTHER_BUILD)
    build = two_builds.Build(tmp_path)
    assert build.ops == ["rms_norm"]
    requests = dict(two_builds.requests())
    (request,) = [r for text, r in requests.items() if re.match(r"rms_norm +1x2816 float32", text)]
    build.make(request)
    assert build.turn() > 0
    build.end()
    of_ops = {request["op_name"] for request in requests.values() if "op_name" in request}
    assert of_ops == set(COMPOSITIONS)
