"""rms_norm and what PyTorch offers instead, timed in one run."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import Times, time_interleaved
from torch import Tensor

import torch_mlxnorm


def compiled_rms_norm(dim: int, eps: float) -> Callable[[Tensor, Tensor | None, Tensor], Tensor]:
    """Compiled PyTorch with an `out`: Inductor fuses the copy into the one kernel."""
    torch._dynamo.reset()  # no shape pays for the guards of the others

    def into(x: Tensor, weight: Tensor | None, out: Tensor) -> Tensor:
        return out.copy_(F.rms_norm(x, (dim,), weight, eps))

    return torch.compile(into, fullgraph=True, dynamic=False)


def time_against_pytorch(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    casting_mode: torch_mlxnorm.CastingMode = "gemma",
    turns: int = 15,
) -> Times:
    """Of "ours" (`.out`), "eager" (which has no out), "compiled" and "copy"."""
    dim, out = x.shape[-1], torch.empty_like(x)
    compiled = compiled_rms_norm(dim, eps)
    op = torch.ops.mlxnorm.rms_norm.out
    return time_interleaved(
        {
            "ours": lambda: op(x, weight, eps, casting_mode=casting_mode, out=out),
            "eager": lambda: F.rms_norm(x, (dim,), weight, eps),
            "compiled": lambda: compiled(x, weight, out),
            "copy": lambda: out.copy_(x),
        },
        device=x.device.type,
        turns=turns,
    )
