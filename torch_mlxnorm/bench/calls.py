"""What one call costs on the CPU, by each way to call: one row in float32, one thread.

python -m torch_mlxnorm.bench.calls [--json FILE]

A row of 2816 is what a decode step has; one of 64 shows what the host takes. In brackets: a
record's time over that of its .out overload, a function's and the module's over F.layer_norm's, a
chain's over its records'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import torch_mlxnorm
from torch_mlxnorm._calls import Call, make_call, operators
from torch_mlxnorm._timing import keep_freed_memory, time_interleaved
from torch_mlxnorm.record import Bound

from . import report
from .clocks import number_of_turns

DIMS = (2816, 64)

HEADS, KV_HEADS, HEAD_DIM = 16, 8, 256

# The norms of a Gemma 4 MoE layer as `accelerate` has them, in the order in which a decode step
# calls them, with their rows and dim, of the layer at most: a row of a rotation is a head.
LAYER = (
    ("rms_norm", 1, DIMS[0]),
    ("rms_norm_rope", HEADS, HEAD_DIM),
    ("rms_norm_rope", KV_HEADS, HEAD_DIM),
    ("rms_norm", KV_HEADS, HEAD_DIM),
    ("fused_post_attn_triple_norm", 1, DIMS[0]),
    ("rms_norm", 1, DIMS[0]),
    ("fused_moe_wsum_post_ff_norm2_endlayer", 1, DIMS[0]),
)

LAYER_NORM = "F.layer_norm(x, (dim,), weight)"
RECORDS = "seven records of a layer"
CHAIN = "their chain"


def baseline(call: str) -> str | None:
    """What a call's time is compared with."""
    if call == CHAIN:
        return RECORDS
    if call.startswith("record of "):
        return f"torch.ops.mlxnorm.{call.removeprefix('record of ')}.out"
    return LAYER_NORM if call.startswith("torch_mlxnorm.") else None


Calls = dict[str, Callable[[], object]]


def calls(dim: int) -> list[Calls]:
    """By their text, and those together that take turns: an op's, each with F.layer_norm."""
    x, weight = torch.randn(1, dim), torch.randn(dim)
    ours, module = torch_mlxnorm.rms_norm, torch_mlxnorm.RMSNorm(dim)
    layer_norm: Calls = {LAYER_NORM: lambda: F.layer_norm(x, (dim,), weight)}
    first = layer_norm | {
        "F.rms_norm(x, (dim,), weight, 1e-6)": lambda: F.rms_norm(x, (dim,), weight, 1e-6),
        "torch_mlxnorm.RMSNorm(dim)(x)": lambda: module(x),
        'torch_mlxnorm.rms_norm(x, weight, casting_mode="llama")': lambda: ours(
            x, weight, casting_mode="llama"
        ),
    }
    each = [layer_norm | _of_op(make_call(o, 1, dim, torch.float32)) for o in operators()]
    return [first, *each, _of_a_layer(dim)]


def _of_op(call: Call) -> Calls:
    name = call.operator.name
    arguments = getattr(torch.ops.mlxnorm, name).out._schema.arguments
    by_position = [a.name for a in arguments if not a.kwarg_only and a.name in call.tensors]
    tensors = tuple(call.tensors[tensor] for tensor in by_position)
    keywords = {key: t for key, t in call.present.items() if key not in by_position}
    function, write = getattr(torch_mlxnorm, name), getattr(torch.ops.mlxnorm, name).out
    record, given, outs = _record(call)
    by_name = dict(zip(call.operator.outs, outs, strict=True))
    out = outs if len(outs) > 1 else outs[0]
    return {
        f"record of {name}": lambda: record(*given, out=out),
        f"torch.ops.mlxnorm.{name}.out": lambda: write(*tensors, **keywords, **by_name),
        f"torch_mlxnorm.{name}": lambda: function(*tensors, **keywords),
        f"torch_mlxnorm.{name}, out=": lambda: function(*tensors, **keywords, out=out),
    }


def _record(
    call: Call,
) -> tuple[torch_mlxnorm.Record, tuple[torch.Tensor | None, ...], tuple[torch.Tensor, ...]]:
    """With its tensors, those at the end that are None left away, and outs."""
    given = tuple(call.tensors.values())
    while given[-1] is None:
        given = given[:-1]
    return torch_mlxnorm.prebake(call.operator.name, *given), given, call.empty_outs()


def _of_a_layer(layer_dim: int) -> Calls:
    by_name = {operator.name: operator for operator in operators()}
    bound: list[Bound] = []
    for name, rows, dim in LAYER:
        call = make_call(by_name[name], rows, min(dim, layer_dim), torch.float32)
        record, given, outs = _record(call)
        bound.append(record.bind(*given, out=outs))
    chain = torch_mlxnorm.prebake_chain(*bound)
    each = [(record, given, outs if len(outs) > 1 else outs[0]) for record, given, outs in bound]

    def one_by_one() -> None:
        for record, given, out in each:
            record(*given, out=out)

    return {RECORDS: one_by_one, CHAIN: lambda: chain()}


def timed(dim: int, turns: int) -> list[dict[str, Any]]:
    """A line for each call: quartiles of its times and of their ratios to its baseline's."""
    lines: dict[str, dict[str, Any]] = {}
    for together in calls(dim):
        times = time_interleaved(together, turns=turns)
        for name in together:
            us = [round(seconds * 1e6, 3) for seconds in times.quartiles(name)]
            line: dict[str, Any] = {"call": name, "dim": dim, "us": us}
            if other := baseline(name):
                line["of"] = [round(q, 3) for q in times.speedup_quartiles(other, over=name)]
            lines.setdefault(name, line)
    return list(lines.values())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench.calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=number_of_turns, default=101)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = report.machine("cpu")
    print(f"{machine['name']}, torch {machine['torch']}")
    records = []
    for dim in DIMS:
        print(f"1×{dim}")
        for line in timed(dim, options.turns):
            records.append(line)
            ratio = f"  ({line['of'][1]:.2f})" if "of" in line else ""
            print(f"  {line['call']:58}{report.microseconds(line)}{ratio}")
    if options.json:
        report.write_json(options.json, machine, records)


if __name__ == "__main__":
    keep_freed_memory()
    main()
