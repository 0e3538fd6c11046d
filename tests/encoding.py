"""What repeated calls on simulated MPS take until they are encoded, but for the fake Metal's part:
allocations, where tests/allocations.cpp is preloaded, and time.

python tests/encoding.py [allocations | microseconds]
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import metal_sim

metal_sim.enable()

import torch  # noqa: E402 (after its device)
from ops import OPS  # noqa: E402

import torch_mlxnorm  # noqa: E402

CALLS = 200
TURNS = 25


def ways_to_call() -> dict[str, Callable[[], Any]]:
    """By name: the function, the overload and the record of every op, each with `out`, a chain of
    some of them, and what has to be counted."""
    ways: dict[str, Callable[[], Any]] = {}
    bound = []
    for op in OPS.values():
        call = op.call((1,), 2816, torch.bfloat16, "mps")
        outs = call.empty_outs()
        out = outs if len(outs) > 1 else outs[0]
        function = getattr(torch_mlxnorm, op.name)
        write = getattr(torch.ops.mlxnorm, op.name).out
        arguments = {**call.given(), **call.options}
        named = dict(zip(op.results, outs, strict=True))
        ways[f"function of {op.name}"] = lambda f=function, a=arguments, o=out: f(**a, out=o)
        ways[f"overload of {op.name}"] = lambda f=write, a=arguments, o=named: f(**a, **o)
        record, given = call.prebaked(outs), tuple(call.given().values())
        ways[f"record of {op.name}"] = lambda r=record, g=given, o=out: r(*g, out=o)
        bound.append(record.bind(*given, out=outs))
    ways["chain"] = torch_mlxnorm.prebake_chain(*bound[:8])
    ways["tensor without memory"] = lambda: torch.empty(0)
    return ways


def allocations(call: Callable[[], Any]) -> float:
    count = ctypes.CDLL(None).allocations_of_this_thread
    count.restype = ctypes.c_int64

    def during(body: Callable[[], Any], times: int) -> int:
        before = count()
        for _ in range(times):
            body()
        return count() - before

    # Python allocates at times of its own.
    own = min(during(lambda: metal_sim.encode_nothing(CALLS), 1) for _ in range(3))
    return (min(during(call, CALLS) for _ in range(3)) - own) / CALLS


def microseconds(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Medians of turns."""

    def during(body: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        body()
        return (time.perf_counter() - begin) / CALLS * 1e6

    def repeated(call: Callable[[], Any]) -> None:
        for _ in range(CALLS):
            call()

    own, turns = [], {name: [] for name in calls}
    for _ in range(TURNS):
        own.append(during(lambda: metal_sim.encode_nothing(CALLS)))
        for name, call in calls.items():
            turns[name].append(during(lambda call=call: repeated(call)))
    return {name: median(times) - median(own) for name, times in turns.items()}


def main() -> None:
    calls = ways_to_call()
    with metal_sim.only_counting():
        for call in calls.values():
            call()
        if sys.argv[1:] == ["microseconds"]:
            result = microseconds(calls)
        else:
            result = {name: allocations(call) for name, call in calls.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
