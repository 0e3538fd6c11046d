"""The examinations of torch_mlxnorm.doctor: each yields the rows of its table while it works."""

from __future__ import annotations

import itertools
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, get_args

import torch
import torch.nn.functional as F

import torch_mlxnorm
from torch_mlxnorm._calls import Call, Operator, make_call, operators
from torch_mlxnorm._exactness import compare, rounds_between
from torch_mlxnorm._timing import time_interleaved, waiting_for

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RUNS = 10
EPS = 1e-6


@dataclass(frozen=True)
class Setting:
    """What is examined, and how thoroughly."""

    device: str
    simulated: bool = False
    quick: bool = False

    # Each has a kernel of its own on MPS, with and without vector access.
    @property
    def dims(self) -> list[int]:
        if self.simulated:
            return [64, 33, 2056]
        return [128, 255, 2816] if self.quick else [128, 255, 2816, 12288, 20480, 40001]

    @property
    def dims_of_variants(self) -> list[int]:
        return self.dims[1:2] if self.simulated or self.quick else self.dims[1:3]

    @property
    def host_dim(self) -> int:
        return 64 if self.simulated else 2816

    @property
    def large_shapes(self) -> list[tuple[int, int]]:
        if self.simulated:
            return [(4, 256)]
        return [(512, 2816)] if self.quick else [(512, 2816), (65536, 128), (4096, 4096)]

    @property
    def turns(self) -> int:
        return 3 if self.simulated or self.quick else 9

    @property
    def seconds_per_turn(self) -> float:
        """On a GPU long enough for the wait at the end not to count."""
        if self.simulated or self.quick:
            return 0.001
        return 0.004 if self.device == "cpu" else 0.03


# ---- what sections report -----------------------------------------------------------------------


class Wrong(Exception):
    """A finding. Its text says it all."""


@dataclass
class Row:
    """A line of a section's table. `failures` are texts, tracebacks among them."""

    HEADER: ClassVar[str] = ""
    failures: list[str] = field(default_factory=list, kw_only=True)

    @property
    def title(self) -> str:
        values = (getattr(self, f.name) for f in fields(self))
        return " ".join(value for value in values if isinstance(value, str))

    def line(self) -> str:
        raise NotImplementedError

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Failures of the block are the row's, and the examination goes on."""
        try:
            yield
        except Wrong as finding:
            self.failures.append(f"{what}: {finding}")
        except Exception:
            self.failures.append(f"{what}: {traceback.format_exc().rstrip()}")


@dataclass
class Fact(Row):
    name: str
    value: str

    def line(self) -> str:
        return f"{self.name:24} {self.value}"


@dataclass
class Preparation(Row):
    HEADER: ClassVar[str] = f"{'operator':38}{'milliseconds':>13}"
    operator: str
    milliseconds: float = math.nan

    def line(self) -> str:
        return f"{self.operator:38}{self.milliseconds:13.1f}"

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        with self.noting(what):
            start = time.perf_counter()
            yield
            self.milliseconds = (time.perf_counter() - start) * 1e3


@dataclass
class Values(Row):
    HEADER: ClassVar[str] = f"{'operator':38}{'dtype':9}{'calls':>6}{'elements':>10}{'error':>10}"
    operator: str
    dtype: str
    calls: int = 0
    elements: int = 0
    largest_error: float = 0.0  # in units of what is added up

    def line(self) -> str:
        counts = f"{self.calls:6}{self.elements:10}{self.largest_error:10.1e}"
        return f"{self.operator:38}{self.dtype:9}{counts}"


@dataclass
class Bits(Row):
    HEADER: ClassVar[str] = f"{'operator':38}{'dtype':9}{'equal':>8}"
    operator: str
    dtype: str
    runs: int = 0
    equal: int = 0

    def line(self) -> str:
        return f"{self.operator:38}{self.dtype:9}{f'{self.equal}/{self.runs}':>8}"


@dataclass
class HostTime(Row):
    HEADER: ClassVar[str] = f"{'call':52}{'shape':8}{'dtype':9}{'microseconds':>12}"
    call: str
    shape: str
    dtype: str
    microseconds: float

    def line(self) -> str:
        return f"{self.call:52}{self.shape:8}{self.dtype:9}{self.microseconds:12.2f}"


@dataclass
class Bandwidth(Row):
    COLUMNS: ClassVar[tuple[str, ...]] = ("ours", "copy", "F.rms_norm", "mlx")
    HEADER: ClassVar[str] = f"{'operator':38}{'shape':>11} {'dtype':9}" + "".join(
        f"{name:>{len(name) + 4}}" for name in COLUMNS
    )
    operator: str
    shape: str
    dtype: str
    gigabytes_per_second: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        rates = self.gigabytes_per_second
        cells = (
            f"{f'{rates[name]:.1f}' if name in rates else '-':>{len(name) + 4}}"
            for name in self.COLUMNS
        )
        return f"{self.operator:38}{self.shape:>11} {self.dtype:9}{''.join(cells)}"


@dataclass
class Kernels(Row):
    HEADER: ClassVar[str] = f"{'operator':38}{'from':9}{'kernels':>8}{'seconds':>9}{'longest':>9}"
    operator: str
    origin: str
    seconds: dict[str, list[float]]  # by name; one entry for each set of options

    def line(self) -> str:
        times = [s for each in self.seconds.values() for s in each]
        figures = f"{len(times):8}{sum(times):9.2f}{max(times):9.3f}"
        return f"{self.operator:38}{self.origin:9}{figures}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- sections -----------------------------------------------------------------------------------


def environment(setting: Setting) -> Iterator[Row]:
    """What the figures below are of."""
    mps, simulated = torch.backends.mps, ", simulated Metal" if setting.simulated else ""
    yield Fact("torch_mlxnorm", f"{torch_mlxnorm.__version__}, {Path(__file__).parent}")
    yield Fact("torch", f"{torch.__version__}, git {torch.version.git_version}")
    yield Fact("built for", built_for())
    yield Fact("mlx", "not installed" if (mx := mlx()) is None else mx.__version__)
    yield Fact("python", f"{platform.python_version()}, {platform.machine()}")
    yield Fact("system", platform.platform())
    yield Fact("processor", f"{processor()}, {os.cpu_count()} cores")
    yield Fact("memory", f"{memory() / 2**30:.1f} GiB")
    yield Fact("device", setting.device + simulated)
    yield Fact("MPS", f"built: {mps.is_built()}, available: {mps.is_available()}")
    yield Fact("CPU capability", torch.backends.cpu.get_cpu_capability())
    yield Fact("CPU threads", str(torch.get_num_threads()))
    yield Fact("TORCH_MLXNORM_KERNEL", os.environ.get("TORCH_MLXNORM_KERNEL", "not set"))


def built_for() -> str:
    try:
        from torch_mlxnorm import _build  # written by setup.py
    except ImportError:
        return "not recorded"
    return f"torch {_build.TORCH}, metallibs: {', '.join(_build.METALLIBS) or 'none'}"


def processor() -> str:
    if sys.platform == "darwin":
        return sysctl("machdep.cpu.brand_string")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def memory() -> int:
    if sys.platform == "darwin":
        return int(sysctl("hw.memsize"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def sysctl(name: str) -> str:
    result = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def mlx() -> ModuleType | None:
    try:
        import mlx.core
    except ModuleNotFoundError as error:
        if error.name not in ("mlx", "mlx.core"):
            raise
        return None
    return mlx.core


def first_calls(setting: Setting) -> Iterator[Row]:
    """Until the results are there, float32: on MPS a kernel is loaded or compiled meanwhile."""
    wait = waiting_for(setting.device)
    for operator in operators():
        call = make_call(operator, 2, setting.host_dim, torch.float32, setting.device)
        row = Preparation(operator.name)
        wait()
        with row.measuring("first call"):
            call()
            wait()
        yield row


def warm_up(setting: Setting) -> Iterator[Row]:
    """Of the other kernels, side by side. On the CPU there is nothing to do."""
    for operator in operators():
        row = Preparation(operator.name)
        with row.measuring("torch_mlxnorm.warm_up"):
            torch_mlxnorm.warm_up(
                operator.name,
                DTYPES,
                setting.dims,
                missing=(),
                scale="many",
                device=setting.device,
            )
        yield row


def cases(operator: Operator, dtype: torch.dtype, setting: Setting) -> Iterator[dict[str, Any]]:
    """What to make calls with: every kernel, then every option."""
    of_rms = {"form": "rms"} if "form" in operator.options else {}
    variants: list[dict[str, Any]] = [of_rms | {"casting_mode": "llama"}]
    variants.append({"missing": operator.optional})
    if "round_intermediates" in operator.options:
        variants.append({"round_intermediates": True})
    if operator.has_scale:
        variants += [{"scale": "one"}, {"scale": "rows"}]
    if "activation" in operator.options:
        activations = get_args(torch_mlxnorm.Activation)
        variants += [{"activation": activation, "scale": "rows"} for activation in activations]
    if "norm_before_gate" in operator.options:
        after = {"norm_before_gate": True}
        variants += [after, after | {"round_intermediates": True}]
    if operator.extras:
        variants.append({"extras": True})
    if "form" in operator.options:
        forms = get_args(torch_mlxnorm.ChannelForm)
        variants += [{"form": form, "silu": silu} for form in forms for silu in (False, True)]
    if "gate_activation" in operator.options:
        gated = {"extras": True, "gate_activation": "tanh"}
        variants.append(gated | {"round_intermediates": True, "scale": "rows"})
        variants.append({"alpha": 0.25, "beta": -1.5})
    if "residual" in operator.tensors.values() and dtype != torch.float32:
        wide = {"residual_dtype": torch.float32}
        variants += [wide, wide | {"round_intermediates": True, "extras": True}]
    variants += [{"operand_dtype": other} for other in DTYPES if other != dtype]
    yield from ({"dim": dim} for dim in setting.dims)
    for dim in setting.dims_of_variants:
        yield from (variant | {"dim": dim} for variant in variants)
        if "group_size" in operator.options:
            yield {"dim": dim, "group_size": dim // (2 if dim % 2 == 0 else 3)}


def values(setting: Setting) -> Iterator[Row]:
    """Every kernel and every option, against torch_mlxnorm.reference. The error is relative to
    what the summands add up to; rounding alone gives 6e-8, 4.9e-4 and 3.9e-3."""
    device = setting.device
    for operator in operators():
        for dtype in DTYPES:
            row = Values(operator.name, name_of(dtype))
            for case in cases(operator, dtype, setting):
                with row.noting(str(case)):
                    row.calls += 1
                    check_values(row, make_call(operator, 3, dtype=dtype, device=device, **case))
            yield row


def check_values(row: Values, call: Call) -> None:
    wrong = []
    rounded = rounds_between(call.operator.name, call.input.dtype, call.options)
    everything = (call.operator.outs, call(), call.reference(), call.magnitudes())
    for name, actual, exact, magnitude in zip(*everything, strict=True):
        comparison = compare(actual, exact, magnitude, rounded=rounded)
        row.elements += comparison.elements
        # A NaN stays, whatever comes after it.
        if not comparison.largest_error <= row.largest_error and not math.isnan(row.largest_error):
            row.largest_error = comparison.largest_error
        if comparison.wrong:
            wrong.append(f"{name}: {comparison}")
    if wrong:
        raise Wrong("; ".join(wrong))


def bits(setting: Setting) -> Iterator[Row]:
    """Ten runs more give the bits of the first, in fresh results and in `out`; so does the first
    row without the others. A record gives the bits of rms_norm."""
    for operator in operators():
        for dtype in DTYPES:
            row = Bits(operator.name, name_of(dtype))
            record = Bits("RmsNormRecord", name_of(dtype))
            for dim in setting.dims:
                rows = 3 if setting.simulated else max(4, min(64, 2**18 // dim))
                with row.noting(f"{rows}x{dim}"):
                    call = make_call(operator, rows, dim, dtype, setting.device)
                    check_bits(row, call, call.again())
                    if not same_bits(call.first_row()(), call.first_row_of(call())):
                        raise Wrong("the first row alone has other bits than in the batch")
                if operator.name == "rms_norm":
                    with record.noting(f"{rows}x{dim}"):
                        check_bits(record, call, again_by_record(call))
            yield row
            if record.runs or record.failures:
                yield record


def check_bits(row: Bits, call: Call, again: Iterator[Sequence[torch.Tensor]]) -> None:
    first = call()
    equal = sum(same_bits(results, first) for results in itertools.islice(again, RUNS))
    row.runs += RUNS
    row.equal += equal
    if equal < RUNS:
        raise Wrong(f"{RUNS - equal} of {RUNS} runs gave other bits")


def again_by_record(call: Call) -> Iterator[Sequence[torch.Tensor]]:
    x, weight = call.present.values()
    rows, dim = x.shape
    record = torch_mlxnorm.RmsNormRecord(x.dtype, rows, dim, eps=EPS, device=x.device)
    while True:
        (out,) = call.empty_outs()
        record(x, weight, out)
        yield (out,)


def same_bits(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    def integers(t: torch.Tensor) -> torch.Tensor:
        return t.cpu().view({4: torch.int32, 2: torch.int16}[t.element_size()])

    pairs = zip(actual, expected, strict=True)
    return all(torch.equal(integers(a), integers(b)) for a, b in pairs)


def opcheck(setting: Setting) -> Iterator[Row]:
    """torch.library.opcheck of rms_norm: schema, autograd, fake tensors, tracing."""
    call = make_call(Operator.named("rms_norm"), 3, 64, torch.float32, setting.device)
    packet, arguments = torch.ops.mlxnorm.rms_norm, tuple(call.present.values())
    outs = dict(zip(call.operator.outs, call.empty_outs(), strict=True))
    for overload, keywords in ((packet.default, {}), (packet.out, outs)):
        for test, result in torch.library.opcheck(overload, arguments, keywords).items():
            yield Fact(str(overload), f"{test}: {result}")


def host_time(setting: Setting) -> Iterator[Row]:
    """Of one call, out= given; on MPS until it is encoded, nobody waits for it."""
    dim, dtype, device = setting.host_dim, torch.bfloat16, setting.device
    candidates: dict[str, Callable[[], object]] = {}
    for operator in operators():
        call = make_call(operator, 1, dim, dtype, device)
        outs = call.empty_outs()
        candidates[f"torch_mlxnorm.{operator.name}"] = lambda call=call, outs=outs: call.write(outs)
    call = make_call(Operator.named("rms_norm"), 1, dim, dtype, device)
    x, weight = call.present.values()
    (out,) = call.empty_outs()
    op = torch.ops.mlxnorm.rms_norm.out
    record = torch_mlxnorm.RmsNormRecord(dtype, 1, dim, eps=EPS, device=device)
    candidates["torch.ops.mlxnorm.rms_norm.out"] = lambda: op(x, weight, EPS, out=out)
    candidates["RmsNormRecord"] = lambda: record(x, weight, out)
    candidates["F.rms_norm"] = lambda: F.rms_norm(x, (dim,), weight, EPS)
    candidates["torch.add(out=)"] = lambda: torch.add(x, x, out=out)
    with torch.inference_mode():
        times = time_interleaved(
            candidates,
            wait=waiting_for(device),
            host_only=True,
            turns=setting.turns,
            seconds_per_turn=setting.seconds_per_turn,
        )
    for name in candidates:
        yield HostTime(name, f"1x{dim}", name_of(dtype), times.median(name) * 1e6)


def bandwidth(setting: Setting) -> Iterator[Row]:
    """Gigabytes a second, each input read once and each result written once; the copy moves as
    many. All CPU threads."""
    everything = operators()
    everywhere = [(shape, dtype) for shape in setting.large_shapes for dtype in DTYPES]
    for operator in sorted(everything, key=lambda operator: operator.name != "rms_norm"):
        fused = operator.name != "rms_norm"
        for (rows, dim), dtype in everywhere[2:3] if fused else everywhere:  # fused: bfloat16
            row = Bandwidth(operator.name, f"{rows}x{dim}", name_of(dtype))
            with row.noting("timing"):
                time_bandwidth(row, make_call(operator, rows, dim, dtype, setting.device), setting)
            yield row


def time_bandwidth(row: Bandwidth, call: Call, setting: Setting) -> None:
    outs, moved, like = call.empty_outs(), call.bytes_moved, call.input
    # Ones: of memory that was never written, the system has but one page.
    source = like.new_ones(moved // 2 // like.element_size())
    target = torch.empty_like(source)
    candidates = {"ours": lambda: call.write(outs), "copy": lambda: target.copy_(source)}
    waits = [waiting_for(setting.device)]
    if call.operator.name == "rms_norm":
        x, weight = call.present.values()
        candidates["F.rms_norm"] = lambda: F.rms_norm(x, weight.shape, weight, EPS)
        if (mx := mlx()) is not None:
            candidates["mlx"] = mlx_norm(mx, x, setting)
            waits.append(mx.synchronize)
    with torch.inference_mode():
        times = time_interleaved(
            candidates,
            wait=lambda: [wait() for wait in waits],
            turns=setting.turns,
            seconds_per_turn=setting.seconds_per_turn,
        )
    for name in candidates:
        row.gigabytes_per_second[name] = moved / times.median(name) / 1e9


def mlx_norm(mx: ModuleType, like: torch.Tensor, setting: Setting) -> Callable[[], object]:
    """mlx.core.fast.rms_norm, started but not waited for."""
    on_gpu = setting.device == "mps" and not setting.simulated
    mx.set_default_device(mx.gpu if on_gpu else mx.cpu)
    dtype, dim = getattr(mx, name_of(like.dtype)), like.shape[-1]
    x, weight = mx.random.normal(tuple(like.shape)).astype(dtype), mx.ones((dim,)).astype(dtype)
    mx.eval(x, weight)
    return lambda: mx.async_eval(mx.fast.rms_norm(x, weight, EPS))


def kernels(setting: Setting) -> Iterator[Row]:
    """Which library the kernels came from, and how long each took to be ready."""
    found = torch_mlxnorm.compiled_kernels(setting.device)
    if not found:
        yield Fact(setting.device, "compiled when the extension was built")
    names = [operator.name for operator in operators()]
    rows: dict[tuple[str, str], Kernels] = {}
    for name, origin, seconds in found:
        # The longest: rms_norm_add's kernels begin with "rms_norm" as well.
        operator = max((n for n in names if name.startswith(n + "_")), key=len, default="?")
        row = rows.setdefault((operator, origin), Kernels(operator, origin, {}))
        row.seconds.setdefault(name, []).append(seconds)
    yield from rows.values()


Examination = Callable[[Setting], Iterator[Row]]
SECTIONS: dict[str, Examination] = {
    "environment": environment,
    "first calls": first_calls,
    "warm up": warm_up,
    "values": values,
    "equal bits": bits,
    "opcheck": opcheck,
    "host time": host_time,
    "bandwidth": bandwidth,
    "kernels": kernels,
}
TIMES = ("first calls", "warm up", "host time", "bandwidth")
