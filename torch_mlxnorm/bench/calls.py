"""What one call costs on the CPU, by each way to call: one row in float32, one thread.

python -m torch_mlxnorm.bench.calls [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import torch_mlxnorm
from torch_mlxnorm._calls import Call, make_call, operators
from torch_mlxnorm._timing import keep_freed_memory, time_interleaved
from torch_mlxnorm.record import Bound

from . import report
from .clocks import number_of_turns

DIM = 2816

HEADS, KV_HEADS, HEAD_DIM = 16, 8, 256

# The norms of a Gemma 4 MoE layer as `accelerate` has them, in the order in which a decode step
# calls them, with their rows and dim: a row of a rotation is a head.
LAYER = (
    ("rms_norm", 1, DIM),
    ("rms_norm_rope", HEADS, HEAD_DIM),
    ("rms_norm_rope", KV_HEADS, HEAD_DIM),
    ("rms_norm", KV_HEADS, HEAD_DIM),
    ("fused_post_attn_triple_norm", 1, DIM),
    ("rms_norm", 1, DIM),
    ("fused_moe_wsum_post_ff_norm2_endlayer", 1, DIM),
)


def calls() -> dict[str, Callable[[], object]]:
    """By their text."""
    x, weight = torch.randn(1, DIM), torch.randn(DIM)
    ours, module = torch_mlxnorm.rms_norm, torch_mlxnorm.RMSNorm(DIM)
    result: dict[str, Callable[[], object]] = {
        f"F.layer_norm(x, ({DIM},), weight)": lambda: F.layer_norm(x, (DIM,), weight),
        f"F.rms_norm(x, ({DIM},), weight, 1e-6)": lambda: F.rms_norm(x, (DIM,), weight, 1e-6),
        f"torch_mlxnorm.RMSNorm({DIM})(x)": lambda: module(x),
        'torch_mlxnorm.rms_norm(x, weight, casting_mode="llama")': lambda: ours(
            x, weight, casting_mode="llama"
        ),
    }
    for operator in operators():
        result |= _of_op(make_call(operator, 1, DIM, torch.float32))
    return result | _of_a_layer()


def _of_op(call: Call) -> dict[str, Callable[[], object]]:
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


def _of_a_layer() -> dict[str, Callable[[], object]]:
    by_name = {operator.name: operator for operator in operators()}
    bound: list[Bound] = []
    for name, rows, dim in LAYER:
        record, given, outs = _record(make_call(by_name[name], rows, dim, torch.float32))
        bound.append(record.bind(*given, out=outs))
    chain = torch_mlxnorm.prebake_chain(*bound)
    each = [(record, given, outs if len(outs) > 1 else outs[0]) for record, given, outs in bound]

    def one_by_one() -> None:
        for record, given, out in each:
            record(*given, out=out)

    return {"seven records of a layer": one_by_one, "their chain": lambda: chain()}


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
    times = time_interleaved(calls(), turns=options.turns)
    records = []
    for name in times.turns:
        us = [round(seconds * 1e6, 3) for seconds in times.quartiles(name)]
        records.append({"call": name, "us": us})
        print(f"{name:58}{report.microseconds(records[-1])}")
    if options.json:
        report.write_json(options.json, machine, records)


if __name__ == "__main__":
    keep_freed_memory()
    main()
