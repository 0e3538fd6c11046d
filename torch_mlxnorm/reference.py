"""Each operator as plain PyTorch in float64: what it means, and the oracle of the tests.

The functions take the operator's arguments, on any device, and return what the operator would
before its last rounding: a float64 tensor on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_mlxnorm.functional import CastingMode


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
) -> Tensor:
    """``x * rsqrt(mean(x**2) + eps) * (weight + weight_offset)``."""
    exact = x.detach().cpu().double()
    normalized = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + eps)
    if weight is None:
        return normalized
    if casting_mode == "llama":
        normalized = normalized.to(x.dtype).double()
    return normalized * (weight.detach().cpu().double() + weight_offset)
