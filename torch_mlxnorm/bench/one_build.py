"""The build of two_builds.py that PYTHONPATH names, in a process of its own. Run as a file, it
imports nothing of this folder: the other build may have another one, or none."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

import torch_mlxnorm

SECONDS_PER_TURN = 0.004


def short_call(way: str) -> Callable[[], object]:
    """By a way to call, of one short row."""
    rows, dim, dtype = 1, 64, torch.float32
    x, weight, out, residual_out = torch.ones(4, rows, dim, dtype=dtype)
    if way == "function":
        return lambda: torch_mlxnorm.rms_norm(x, weight[0], out=out)
    if way == "record":
        return partial(torch_mlxnorm.RmsNormRecord(dtype, rows, dim), x, weight[0], out)
    name, _, overload = way.partition(".")
    op = getattr(getattr(torch.ops.mlxnorm, name), overload or "default")
    arguments = (x, weight[0]) if name == "rms_norm" else (x, x, weight[0])
    outs = {"out": out, "residual_out": residual_out}
    names = [a.name for a in op._schema.arguments if a.is_out]
    return partial(op, *arguments, **{name: outs[name] for name in names})


def call_of(
    op_name: str, shapes: Mapping[str, Sequence[int]], outs: Mapping[str, Sequence[int]], dtype: str
) -> Callable[[], object]:
    kind = getattr(torch, dtype)
    tensors = {name: torch.randn(shape).to(kind) for name, shape in shapes.items()}
    results = {name: torch.empty(shape, dtype=kind) for name, shape in outs.items()}
    return partial(getattr(torch.ops.mlxnorm, op_name).out, **tensors, **results)


@torch.inference_mode()
def main() -> None:
    """For every request on stdin, a line of JSON: a list of ops is answered with those that there
    are, a dictionary makes a call, and null takes a turn: seconds a call."""
    torch.set_num_threads(1)
    for text in sys.stdin:
        request = json.loads(text)
        if isinstance(request, list):
            print(json.dumps([op for op in request if hasattr(torch.ops.mlxnorm, op)]), flush=True)
        elif isinstance(request, dict):
            call = short_call(**request) if "way" in request else call_of(**request)
            call()
            start = time.perf_counter()
            call()
            count = max(1, int(SECONDS_PER_TURN / max(time.perf_counter() - start, 1e-7)))
        else:
            start = time.thread_time()
            for _ in range(count):
                call()
            print((time.thread_time() - start) / count, flush=True)


if __name__ == "__main__":
    main()
