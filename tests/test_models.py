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

from torch_mlxnorm import (
    add_rms_norm,
    gated_rms_norm,
    qkv_norm_rope,
    rms_norm,
    rms_norm_add,
    rms_norm_add_rms_norm,
    rms_norm_modulate,
    rms_norm_mul,
    rms_norm_rope,
)
from torch_mlxnorm.bench import model_code

EQUAL = {torch.bfloat16: 0.9999, torch.float16: 0.999}


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


def residual(
    rows: int = 0, weights: int = 1, dim: int = 2048
) -> Callable[[torch.dtype], tuple[Tensor, ...]]:
    """A branch and the residual of 64 tokens, weights, and rows of modulation."""

    def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
        y, h = (randn(2, 64, dim, dtype=dtype, seed=seed) for seed in (0, 1))
        w = [1 + 0.2 * randn(dim, dtype=dtype, seed=2 + i) for i in range(weights)]
        return y, 2 * h, *w, *(randn(2, 1, dim, dtype=dtype, seed=4 + i) for i in range(rows))

    return inputs


def rounded(op: Callable[..., Any], *names: str, **fixed: Any) -> Callable[..., Tensor]:
    """The normed result, or the only one, of a residual op; the tensors behind those that it takes
    by position have these names."""

    def ours(*tensors: Tensor) -> Tensor:
        first = len(tensors) - len(names)
        last = dict(zip(names, tensors[first:], strict=True))
        results = op(*tensors[:first], 1e-5, **last, **{"round_intermediates": True} | fixed)
        return results if op is rms_norm_add else results[0 if op is add_rms_norm else 1]

    return ours


def mamba_residual(dtype: torch.dtype) -> tuple[Tensor, ...]:
    y, h, weight = residual()(dtype)
    return y, h.float() + 2.0**-12 * randn(*h.shape, seed=3), weight


def gemma_3n_of_ours(scale: float) -> Callable[..., Tensor]:
    def ours(y: Tensor, h: Tensor, weight: Tensor) -> Tensor:
        scales = torch.tensor(scale, device=y.device)
        return rms_norm_add(y, h, weight, 1e-5, scale=scales, round_intermediates=True)

    return ours


LLAMA = {"casting_mode": "llama"}
MINIMAX = {"beta": 3.5565588200778455}
NEXT = ("gate", "next_scale", "next_shift")
TANH = {"gate_activation": "tanh"}
QWEN_NEXT = {"norm_before_gate": True, "casting_mode": "llama"}


def rope(**options: Any) -> Callable[..., Tensor]:
    usual = {"casting_mode": "llama", "round_intermediates": True}
    return lambda *inputs: rms_norm_rope(*inputs, **usual | options)


def heads(
    dtype: torch.dtype, tables: torch.dtype, rotated: int, interleaved: bool
) -> tuple[Tensor, ...]:
    """[batch, heads, tokens, dim], a weight, and tables [batch, 1, tokens, rotated]."""
    positions = torch.arange(64.0).view(1, 1, -1, 1)
    angles = positions * 10_000.0 ** -torch.arange(0, 1, 2 / rotated)
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
    return (
        randn(2, 4, 64, 128, dtype=dtype),
        1 + 0.1 * randn(128, dtype=dtype, seed=1),
        angles.cos().to(tables),
        angles.sin().to(tables),
    )


def gemma4_fused(**options: Any) -> Callable[..., Tensor]:
    def run(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        usual = {"rope_rounding": "products", "round_intermediates": True}
        weights = weight, 0.5 * weight
        return torch.cat(
            qkv_norm_rope(q, q[:, :2], q[:, 2:], *weights, cos, sin, 1e-5, **usual | options), dim=1
        )

    return run


def ltx_heads(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """[batch, tokens, heads, dim], a weight for all heads, and angles of each."""
    angles = 6 * randn(2, 64, 4 * 32, seed=2).repeat_interleave(2, -1).unflatten(-1, (4, 64))
    weight = 1 + 0.1 * randn(256, dtype=dtype, seed=1)
    return randn(2, 64, 4, 64, dtype=dtype), weight, angles.cos(), angles.sin()


def summands(
    turned: Callable[[Tensor], Tensor],
    norm: Callable[[Tensor, Tensor], Tensor] = model_code.transformers_norm,
) -> Callable[..., Tensor]:
    """What elements of a pair add up to, their signs left out."""

    def of(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = norm(q, weight).double().abs()
        front, rest = y[..., : cos.shape[-1]], y[..., cos.shape[-1] :]
        return torch.cat([front + turned(front).abs(), rest], dim=-1)

    return of


MODELS = {
    "Mamba2": Model(
        ssm(4096, rows=32),
        model_code.mamba2,
        gated(casting_mode="llama"),
        gated(casting_mode="llama", norm_before_gate=True),
    ),
    "Zamba2": Model(
        ssm(2048),
        model_code.zamba2,
        gated(casting_mode="llama", group_size=512),
        gated(casting_mode="llama"),
    ),
    "Falcon-H1": Model(
        ssm(2048),
        model_code.falcon_h1,
        gated(group_size=1024),
        gated(group_size=1024, casting_mode="llama"),
    ),
    "Qwen3-Next": Model(
        ssm(128),
        model_code.qwen3_next,
        gated(**QWEN_NEXT, round_intermediates=True),
        gated(**QWEN_NEXT),
    ),
    "Kimi Linear": Model(
        ssm(128),
        model_code.kimi_linear,
        gated(norm_before_gate=True, activation="sigmoid"),
        gated(activation="sigmoid"),
    ),
    "Qwen3": Model(
        lambda dtype: heads(dtype, dtype, 128, interleaved=False),
        model_code.transformers,
        rope(rope_rounding="products"),
        rope(),
        summands(model_code.rotate_half),
    ),
    "Flux, diffusers": Model(
        lambda dtype: heads(dtype, torch.float32, 128, interleaved=True),
        model_code.flux,
        rope(interleaved=True),
        rope(interleaved=True, rope_rounding="products"),
        summands(model_code.rotate_neighbours),
    ),
    "Flux, halves": Model(
        lambda dtype: heads(dtype, torch.float32, 128, interleaved=True),
        model_code.flux,
        rope(interleaved=True),
        rope(),
        summands(model_code.rotate_neighbours),
    ),
    "GLM-4.5": Model(
        lambda dtype: heads(dtype, dtype, 64, interleaved=False),
        model_code.transformers,
        rope(full_tables=True, rope_rounding="products"),
        rope(full_tables=True, rope_rounding="addcmul"),
        summands(model_code.rotate_half),
    ),
    "GLM-4.5, half of its tables": Model(
        lambda dtype: heads(dtype, dtype, 64, interleaved=False),
        model_code.transformers,
        lambda q, w, cos, sin: rope(rope_rounding="products")(q, w, cos[..., :32], sin[..., :32]),
        rope(rope_rounding="products"),  # as if they were halves, of tables for all of a row
        summands(model_code.rotate_half),
    ),
    "halves, comfy-kitchen": Model(
        lambda dtype: heads(dtype, dtype, 128, interleaved=False),
        model_code.comfy,
        rope(rope_rounding="addcmul"),
        rope(rope_rounding="products"),
        summands(model_code.rotate_half),
    ),
    "Gemma 3": Model(
        lambda dtype: heads(dtype, dtype, 128, interleaved=False),
        model_code.centered,
        rope(casting_mode="gemma", weight_offset=1.0, rope_rounding="products"),
        rope(weight_offset=1.0, rope_rounding="products"),
        summands(model_code.rotate_half, model_code.centered_norm),
    ),
    "Gemma 4, queries, keys and values": Model(
        lambda dtype: heads(dtype, dtype, 128, interleaved=False),
        model_code.gemma4,
        gemma4_fused(),
        gemma4_fused(rope_rounding="once"),
        lambda *inputs: 4.0,  # the largest summands
    ),
    "Qwen3-Next, a quarter": Model(
        lambda dtype: heads(dtype, dtype, 32, interleaved=False),
        model_code.centered,
        rope(casting_mode="gemma", weight_offset=1.0, rope_rounding="products", full_tables=True),
        rope(casting_mode="gemma", weight_offset=1.0, rope_rounding="products"),
        summands(model_code.rotate_half, model_code.centered_norm),
    ),
    "Qwen-Image": Model(
        lambda dtype: heads(dtype, torch.float32, 128, interleaved=True),
        model_code.qwen_image,
        lambda q, w, cos, sin: rope(interleaved=True)(q, w, cos[..., ::2], sin[..., ::2]),
        lambda q, w, cos, sin: rope()(q, w, cos[..., ::2], sin[..., ::2]),
        summands(model_code.rotate_neighbours),
    ),
    "LTX, across heads": Model(
        ltx_heads,
        model_code.ltx_attention,
        rope(across_heads=True, interleaved=True),
        lambda q, w, cos, sin: rope(interleaved=True)(q, w.unflatten(0, (4, 64)), cos, sin),
        lambda q, w, cos, sin: summands(model_code.rotate_neighbours)(
            q.flatten(-2), w, cos.flatten(-2), sin.flatten(-2)
        ).reshape(q.shape),
    ),
    "bias, diffusers": Model(
        ltx,
        model_code.diffusers_bias,
        modulate(scale_offset=0.0),
        lambda x, weight, bias: rms_norm(x, weight, bias=bias),
        shift_of,
    ),
    "bias, mamba_ssm": Model(
        ltx,
        model_code.mamba_bias,
        lambda x, weight, bias: rms_norm(x, weight, 1e-5, bias=bias),
        lambda x, weight, bias: rms_norm(x, weight, 1e-5, bias=bias, casting_mode="llama"),
        shift_of,
    ),
    "Z-Image, residual": Model(
        residual(rows=1),
        model_code.z_image,
        rounded(rms_norm_add, "gate", **LLAMA, **TANH),
        rounded(rms_norm_add, "gate", **LLAMA, **TANH, round_intermediates=False),
        lambda y, h, *_: h,
    ),
    "Z-Image, scale": Model(
        residual(rows=1),
        lambda y, h, weight, scale: model_code.llama(y, weight) * scale,
        lambda y, h, *given: rms_norm_mul(y, *given, 1e-5, **LLAMA, round_intermediates=True),
        lambda y, h, *given: rms_norm_mul(y, *given, 1e-5, round_intermediates=True),
    ),
    "Z-Image, scale as modulation": Model(
        residual(rows=1),
        lambda y, h, weight, scale: model_code.llama(y, weight) * scale,
        lambda y, h, *given: rms_norm_modulate(
            y, *given, None, 1e-5, **LLAMA, scale_offset=0.0, round_intermediates=True
        ),
        lambda y, h, *given: rms_norm_modulate(y, *given, None, 1e-5, **LLAMA, scale_offset=0.0),
    ),
    "Z-Image, block": Model(
        residual(weights=2, rows=2),
        model_code.z_image_block,
        rounded(rms_norm_add_rms_norm, "gate", "next_scale", **LLAMA, **TANH),
        rounded(rms_norm_add_rms_norm, "gate", "next_scale", **LLAMA),
        lambda y, h, w, next_w, gate, scale: h * next_w * (1 + scale),
    ),
    "DiT block": Model(
        residual(rows=3),
        model_code.dit_block,
        rounded(add_rms_norm, *NEXT, **LLAMA),
        rounded(add_rms_norm, *NEXT, **LLAMA, modulation="addcmul"),
        lambda *tensors: tensors[-1],
    ),
    "Mamba2, residual_in_fp32": Model(
        mamba_residual,
        model_code.mamba,
        lambda y, h, weight: add_rms_norm(y, h, weight, 1e-5)[0],
        lambda y, h, weight: add_rms_norm(y, h.to(y.dtype), weight, 1e-5)[0],
    ),
    "Mamba2, the residual itself": Model(
        mamba_residual,
        lambda y, h, weight: y.float() + h,
        lambda y, h, weight: add_rms_norm(y, h, weight, 1e-5)[1],
        lambda y, h, weight: add_rms_norm(y, h.to(y.dtype), weight, 1e-5)[1].float(),
    ),
    "Granite": Model(
        residual(),
        model_code.granite,
        rounded(add_rms_norm, **LLAMA, alpha=0.22),
        rounded(add_rms_norm, **LLAMA, beta=0.22),
    ),
    "MiniMax": Model(
        residual(),
        model_code.minimax,
        rounded(add_rms_norm, **LLAMA, **MINIMAX),
        rounded(add_rms_norm, **LLAMA, **MINIMAX, round_intermediates=False),
    ),
    "Gemma 3n": Model(
        residual(),
        model_code.gemma_3n,
        gemma_3n_of_ours(0.5**0.5),
        gemma_3n_of_ours(0.71),
        lambda y, h, weight: h,
    ),
    "LTX, diffusers": Model(
        ltx,
        lambda x, scale, shift: model_code.diffusers_norm(x) * (1 + scale) + shift,
        modulate(),
        modulate(modulation="addcmul"),
        shift_of,
    ),
    "LTX, ComfyUI": Model(
        ltx,
        lambda x, scale, shift: torch.addcmul(n := model_code.diffusers_norm(x), n, scale) + shift,
        modulate(modulation="addcmul"),
        modulate(modulation="once"),
        shift_of,
    ),
    "float32 modulation": Model(
        lambda dtype: tuple(t if i == 0 else t.float() for i, t in enumerate(ltx(dtype))),
        lambda x, scale, shift: (model_code.diffusers_norm(x) * (1 + scale) + shift).to(x.dtype),
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
