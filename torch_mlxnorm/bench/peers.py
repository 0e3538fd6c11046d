"""An op and what there is instead of it, timed in one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch

from torch_mlxnorm._timing import Times

from . import clocks, plain
from .case import Call, Case

PEERS = {
    "singles": "the package's rms_norm and PyTorch's operators, writing to the outs",
    "eager": "F.rms_norm and PyTorch's operators, with fresh results",
    "compiled": "the same by torch.compile, writing to the outs",
    "mlx": "mlx.core.fast.rms_norm (on a Mac that has mlx)",
}
COPY, OURS, PLAIN = "copy", "ours", "plain"


@dataclass(frozen=True)
class Result:
    """Times of "ours", of the peers, and of memory's limits: "plain", a plain kernel with the same
    reads and writes, and "copy"."""

    nbytes: int
    times: Times

    @property
    def seconds(self) -> float:
        return self.times.median(OURS)

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes / self.seconds

    def over(self, peer: str) -> float | None:
        return self.times.speedup(OURS, over=peer) if peer in self.times.turns else None


def mlx_call(case: Case) -> Call | None:
    """In memory of MLX's own."""
    if case.op != "rms_norm" or case.device != "mps" or importlib.util.find_spec("mlx") is None:
        return None
    import mlx.core as mx

    x, weight, _ = (case.inputs[name] for name in ("x", "weight", "bias"))

    def array(tensor: torch.Tensor | None) -> object:
        dtype = getattr(mx, str(case.dtype).removeprefix("torch."))
        return None if tensor is None else mx.array(tensor.float().cpu().numpy()).astype(dtype)

    arrays = array(x), array(weight)
    return lambda: mx.eval(mx.fast.rms_norm(*arrays, case.eps))


def measure(case: Case, peers: Collection[str], turns: int) -> Result:
    nbytes = case.bytes_read + case.bytes_written
    cases = [case]
    while len(cases) < clocks.copies(case.device, nbytes):
        cases.append(case.clone())
    candidates: dict[str, list[Call]] = {OURS: [one.ours() for one in cases]}

    def add(name: str, make: Callable[[Case], Call | None]) -> None:
        calls = [call for call in map(make, cases) if call is not None]
        if calls and name in peers:
            candidates[name] = calls

    add("singles", Case.singles)
    add("eager", Case.eager)
    if "compiled" in peers:
        add("compiled", case.compiler())
    add("mlx", mlx_call)

    streams = plain.Streams(case.bytes_read, case.bytes_written, len(case.outs))
    memory = [streams.tensors(case.device) for _ in cases]
    plain_names = []
    for number, kernel in enumerate(plain.kernels(streams, case.device)):
        plain_names.append(f"{PLAIN} {number}")
        candidates[plain_names[-1]] = [partial(kernel, *tensors) for tensors in memory]
    half = max(1, nbytes // 2 // case.dtype.itemsize)
    sources = [torch.ones(half, dtype=case.dtype, device=case.device) for _ in cases]
    candidates[COPY] = [partial(torch.empty_like(source).copy_, source) for source in sources]

    times = clocks.measure(case.device, candidates, turns)
    seconds = dict(times.turns)
    fastest = min(plain_names, key=times.median)
    seconds[PLAIN] = seconds[fastest]
    return Result(nbytes, Times({n: t for n, t in seconds.items() if n not in plain_names}))
