"""With `round_intermediates`, what a model's own code gives, run as PyTorch ops. Few elements
differ: sums of squares are added in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tensors import randn, type_id
from torch import Tensor

from torch_mlxnorm import rms_norm_modulate

EQUAL = {torch.bfloat16: 0.9999, torch.float16: 0.999}


def diffusers_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """diffusers.models.normalization.RMSNorm without a weight."""
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + eps)).to(x.dtype)


@dataclass(frozen=True)
class Model:
    inputs: Callable[[torch.dtype], tuple[Tensor, ...]]
    own: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    planted: Callable[..., Tensor]  # ours with something wrong
    added: Callable[..., Tensor | float] = lambda *inputs: 0.0  # last


def modulate(**options: Any) -> Callable[..., Tensor]:
    return lambda x, scale, shift: rms_norm_modulate(
        x, None, scale, shift, **{"round_intermediates": True} | options
    )


def shift_of(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return shift


def ltx(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """[batch, tokens, dim] and a row of modulation for each of the batch."""
    return (
        randn(2, 64, 2048, dtype=dtype),
        0.3 * randn(2, 1, 2048, dtype=dtype, seed=1),
        randn(2, 1, 2048, dtype=dtype, seed=2),
    )


MODELS = {
    "LTX, diffusers": Model(
        ltx,
        lambda x, scale, shift: diffusers_norm(x) * (1 + scale) + shift,
        modulate(),
        modulate(modulation="addcmul"),
        shift_of,
    ),
    "LTX, ComfyUI": Model(
        ltx,
        lambda x, scale, shift: torch.addcmul(n := diffusers_norm(x), n, scale) + shift,
        modulate(modulation="addcmul"),
        modulate(modulation="once"),
        shift_of,
    ),
    "float32 modulation": Model(
        lambda dtype: tuple(t if i == 0 else t.float() for i, t in enumerate(ltx(dtype))),
        lambda x, scale, shift: (diffusers_norm(x) * (1 + scale) + shift).to(x.dtype),
        modulate(modulation="once"),
        modulate(),
        shift_of,
    ),
}


def equal(ours: Tensor, own: Tensor, added: Tensor | float) -> float:
    """How many elements are, if the others are near: a unit in the last place of the norm, and one
    of the rounding of its product, beside what was added last."""
    ours = ours.cpu()
    assert ours.dtype == own.dtype
    unit = torch.finfo(own.dtype).eps * (own.double().abs() + torch.as_tensor(added).abs())
    near = (ours.double() - own.double()).abs() <= 2 * unit
    return (ours == own).double().mean().item() if near.all() else 0.0


@pytest.mark.parametrize("dtype", EQUAL, ids=type_id)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_models(device: str, model: Model, dtype: torch.dtype) -> None:
    inputs = model.inputs(dtype)
    own, there = model.own(*inputs), [t.to(device) for t in inputs]
    added = model.added(*inputs)
    assert equal(model.ours(*there), own, added) >= EQUAL[dtype]
    assert equal(model.planted(*there), own, added) < EQUAL[dtype]
