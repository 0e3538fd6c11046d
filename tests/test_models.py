"""With `round_intermediates`, what a model's own code gives, run as PyTorch ops. Few elements
differ: sums of squares are added in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensors import randn, type_id
from torch import Tensor

from torch_mlxnorm import gated_rms_norm, rms_norm_modulate

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


def ssm(dim: int, rows: int = 128) -> Callable[[torch.dtype], tuple[Tensor, ...]]:
    """x, gate and weight."""

    def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, gate = (randn(2, rows, dim, dtype=dtype, seed=seed) for seed in (0, 1))
        return x, 2 * gate, 1 + 0.2 * randn(dim, dtype=dtype, seed=2)

    return inputs


def gated(**options: Any) -> Callable[..., Tensor]:
    return lambda x, gate, weight: gated_rms_norm(x, gate, weight, 1e-5, **options)


def normalized(x: Tensor) -> Tensor:
    """Of float32."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def mamba2(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """MambaRMSNormGated, transformers."""
    return weight * normalized(x.float() * F.silu(gate.float())).to(x.dtype)


def zamba2(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """Zamba2RMSNormGated, transformers, in groups of 512."""
    product = x.float() * F.silu(gate.float())
    grouped = normalized(product.view(*x.shape[:-1], -1, 512))
    return weight * grouped.view(x.shape).to(x.dtype)


def falcon_h1(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """FalconH1RMSNormGated, transformers, in two groups."""
    product = (x * F.silu(gate.float())).view(*x.shape[:-1], 2, -1)
    return (weight.view(2, -1) * normalized(product)).view(x.shape).to(x.dtype)


def qwen3_next(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """Qwen3NextRMSNormGated, transformers."""
    n = weight * normalized(x.float()).to(x.dtype)
    return (n * F.silu(gate.float())).to(x.dtype)


def kimi_linear(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """FusedRMSNormGated of flash-linear-attention."""
    return (normalized(x.float()) * weight.float() * torch.sigmoid(gate.float())).to(x.dtype)


QWEN_NEXT = {"norm_before_gate": True, "casting_mode": "llama"}

MODELS = {
    "Mamba2": Model(
        ssm(4096, rows=32),
        mamba2,
        gated(casting_mode="llama"),
        gated(casting_mode="llama", norm_before_gate=True),
    ),
    "Zamba2": Model(
        ssm(2048),
        zamba2,
        gated(casting_mode="llama", group_size=512),
        gated(casting_mode="llama"),
    ),
    "Falcon-H1": Model(
        ssm(2048),
        falcon_h1,
        gated(group_size=1024),
        gated(group_size=1024, casting_mode="llama"),
    ),
    "Qwen3-Next": Model(
        ssm(128),
        qwen3_next,
        gated(**QWEN_NEXT, round_intermediates=True),
        gated(**QWEN_NEXT),
    ),
    "Kimi Linear": Model(
        ssm(128),
        kimi_linear,
        gated(norm_before_gate=True, activation="sigmoid"),
        gated(activation="sigmoid"),
    ),
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
