"""An op and what there is instead of it, timed in one run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from types import ModuleType

import torch

from torch_mlxnorm import _examinations
from torch_mlxnorm._timing import Times, waiting_for

from . import clocks, plain
from .case import Call, Case

PEERS = {
    "singles": "the package's rms_norm and PyTorch's operators, writing to the outs",
    "eager": "F.rms_norm and PyTorch's operators, with fresh results",
    "compiled": "the same by torch.compile, writing to the outs",
    "mlx": "mlx.core.fast.rms_norm, on a Mac's GPU where mlx is installed",
}
OURS = "ours"
PLAIN, COPY = "plain", "copy"  # memory's limits


def mlx_call(mx: ModuleType, case: Case) -> Call:
    """In memory of MLX's own; started but not waited for."""
    dtype = getattr(mx, str(case.dtype).removeprefix("torch."))

    def array(tensor: torch.Tensor | None) -> object:
        return None if tensor is None else mx.array(tensor.float().cpu().numpy()).astype(dtype)

    x, weight = array(case.inputs["x"]), array(case.inputs["weight"])
    return lambda: mx.async_eval(mx.fast.rms_norm(x, weight, case.use.eps))


def measure(case: Case, peers: Collection[str], turns: int) -> Times:
    """Of "ours", of those peers that there are, and of "plain" and "copy"."""
    nbytes = case.bytes_read + case.bytes_written
    cases = [case, *(case.clone() for _ in range(clocks.copies(case.device, nbytes) - 1))]
    waits = [waiting_for(case.device)]
    make: dict[str, Callable[[Case], Call]] = {OURS: Case.ours}
    if "singles" in peers and case.composition.from_singles is not None:
        make["singles"] = Case.singles
    if "eager" in peers:
        make["eager"] = Case.eager
    if "compiled" in peers:
        make["compiled"] = case.compiler()
    if "mlx" in peers and case.op == "rms_norm" and case.device == "mps":
        if (mx := _examinations.mlx()) is not None:
            make["mlx"] = partial(mlx_call, mx)
            waits.append(mx.synchronize)
    candidates = {name: [call(one) for one in cases] for name, call in make.items()}

    streams = plain.Streams(case.bytes_read, case.bytes_written, len(case.outs))
    memory = [streams.tensors(case.device) for _ in cases]
    plain_names = []
    for number, kernel in enumerate(plain.kernels(streams, case.device)):
        plain_names.append(f"{PLAIN} {number}")
        candidates[plain_names[-1]] = [partial(kernel, *tensors) for tensors in memory]
    half = max(1, nbytes // 2 // case.dtype.itemsize)
    sources = [torch.ones(half, dtype=case.dtype, device=case.device) for _ in cases]
    candidates[COPY] = [partial(torch.empty_like(source).copy_, source) for source in sources]

    times = clocks.measure(case.device, candidates, turns, lambda: [wait() for wait in waits])
    fastest = min(plain_names, key=times.median)
    others = {name: t for name, t in times.turns.items() if name not in plain_names}
    return Times(others | {PLAIN: times.turns[fastest]})
