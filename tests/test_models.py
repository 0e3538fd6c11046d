"""With `round_intermediates`, what a model's own code gives, run as PyTorch ops. Few elements
differ: sums of squares are added in another order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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

EQUAL = {torch.bfloat16: 0.9999, torch.float16: 0.999}


def diffusers_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """diffusers.models.normalization.RMSNorm without a weight."""
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + eps)).to(x.dtype)


def transformers_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """transformers' Qwen3RMSNorm and diffusers' RMSNorm with a weight."""
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return weight * (x.float() * torch.rsqrt(variance + eps)).to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """transformers'."""
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def rotate_neighbours(x: Tensor) -> Tensor:
    """In diffusers' apply_rotary_emb, and transformers' rotate_half of GLM-4."""
    real, imag = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-imag, real], dim=-1).flatten(-2)


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


def diffusers_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """diffusers.models.normalization.RMSNorm(bias=True), in 16 bits."""
    return diffusers_norm(x) * weight + bias


def mamba_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """mamba_ssm.ops.triton.layer_norm.rms_norm_ref."""
    return (normalized(x.float()) * weight.float() + bias.float()).to(x.dtype)


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


def llama(x: Tensor, weight: Tensor) -> Tensor:
    """GraniteRMSNorm and MiniMaxRMSNorm, transformers; RMSNorm, diffusers."""
    return weight * normalized(x.float()).to(x.dtype)


def gemma_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Gemma3nRMSNorm, transformers."""
    return (normalized(x.float()) * weight.float()).to(x.dtype)


def z_image(y: Tensor, h: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
    """ZImageTransformerBlock, diffusers."""
    return h + gate.tanh() * llama(y, weight)


def z_image_block(y: Tensor, h: Tensor, w: Tensor, next_w: Tensor, *rows: Tensor) -> Tensor:
    gate, scale = rows
    return llama(z_image(y, h, w, gate), next_w) * (1.0 + scale)


def dit_block(y: Tensor, h: Tensor, w: Tensor, *rows: Tensor) -> Tensor:
    """The gated residual and the adaptive norm of diffusion transformers."""
    gate, scale, shift = rows
    return llama(h + gate * y, w) * (1 + scale) + shift


def mamba_residual(dtype: torch.dtype) -> tuple[Tensor, ...]:
    y, h, weight = residual()(dtype)
    return y, h.float() + 2.0**-12 * randn(*h.shape, seed=3), weight


def mamba(y: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    """rms_norm_ref of mamba_ssm with prenorm, upcast and a residual in float32."""
    h = y.float() + h
    return (normalized(h) * weight.float()).to(y.dtype)


def granite(y: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    """GraniteDecoderLayer, transformers, with the factor of granite-3.1-8b."""
    return llama(h + y * 0.22, weight)


def minimax(y: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    """MiniMaxDecoderLayer, transformers, with the factors of MiniMax-Text-01."""
    return llama(h * 3.5565588200778455 + y * 1.0, weight)


def gemma_3n(y: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    """Gemma3nTextDecoderLayer, transformers, with laurel's output in `h` already."""
    return (h + gemma_norm(y, weight)) / math.sqrt(2)


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


def flux(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q = transformers_norm(q, weight)
    return (q.float() * cos + rotate_neighbours(q).float() * sin).to(q.dtype)


def transformers(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotated(transformers_norm(q, weight), cos, sin)


def comfy(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """comfy-kitchen's halves."""
    q = transformers_norm(q, weight)
    return torch.addcmul(q * cos, rotate_half(q), sin)


def centered_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Gemma3RMSNorm and Qwen3NextRMSNorm, transformers."""
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return (x.float() * torch.rsqrt(variance + 1e-6) * (1.0 + weight.float())).type_as(x)


def rotated(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """apply_rotary_pos_emb, transformers, of the front of a row."""
    front, rest = q[..., : cos.shape[-1]], q[..., cos.shape[-1] :]
    return torch.cat([front * cos + rotate_half(front) * sin, rest], dim=-1)


def centered(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotated(centered_norm(q, weight), cos, sin)


def gemma4(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gemma4TextAttention: four heads of queries, two of keys and two of values."""
    queries, keys = gemma_norm(q, weight), gemma_norm(q[:, :2], 0.5 * weight)
    values = gemma_norm(q[:, 2:], torch.ones_like(weight))
    return torch.cat([rotated(queries, cos, sin), rotated(keys, cos, sin), values], dim=1)


def gemma4_fused(**options: Any) -> Callable[..., Tensor]:
    def run(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        usual = {"rope_rounding": "products", "round_intermediates": True}
        weights = weight, 0.5 * weight
        return torch.cat(
            qkv_norm_rope(q, q[:, :2], q[:, 2:], *weights, cos, sin, 1e-5, **usual | options), dim=1
        )

    return run


def qwen_image(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """apply_rotary_emb_qwen, diffusers, with complex numbers."""
    q = transformers_norm(q, weight)
    pairs = torch.view_as_complex(q.float().unflatten(-1, (-1, 2)))
    turned = pairs * torch.complex(cos[..., ::2].float(), sin[..., ::2].float())
    return torch.view_as_real(turned).flatten(-2).type_as(q)


def ltx_heads(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """[batch, tokens, heads, dim], a weight for all heads, and angles of each."""
    angles = 6 * randn(2, 64, 4 * 32, seed=2).repeat_interleave(2, -1).unflatten(-1, (4, 64))
    weight = 1 + 0.1 * randn(256, dtype=dtype, seed=1)
    return randn(2, 64, 4, 64, dtype=dtype), weight, angles.cos(), angles.sin()


def ltx_attention(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """LTXVideoAttnProcessor, diffusers."""
    return flux(q.flatten(-2), weight, cos.flatten(-2), sin.flatten(-2)).reshape(q.shape)


def summands(
    turned: Callable[[Tensor], Tensor], norm: Callable[[Tensor, Tensor], Tensor] = transformers_norm
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
    "Qwen3": Model(
        lambda dtype: heads(dtype, dtype, 128, interleaved=False),
        transformers,
        rope(rope_rounding="products"),
        rope(),
        summands(rotate_half),
    ),
    "Flux, diffusers": Model(
        lambda dtype: heads(dtype, torch.float32, 128, interleaved=True),
        flux,
        rope(interleaved=True),
        rope(interleaved=True, rope_rounding="products"),
        summands(rotate_neighbours),
    ),
    "Flux, halves": Model(
        lambda dtype: heads(dtype, torch.float32, 128, interleaved=True),
        flux,
        rope(interleaved=True),
        rope(),
        summands(rotate_neighbours),
    ),
    "GLM-4.5": Model(
        lambda dtype: heads(dtype, dtype, 64, interleaved=False),
        transformers,
        rope(full_tables=True, rope_rounding="products"),
        rope(full_tables=True, rope_rounding="addcmul"),
        summands(rotate_half),
    ),
    "GLM-4.5, half of its tables": Model(
        lambda dtype: heads(dtype, dtype, 64, interleaved=False),
        transformers,
        lambda q, w, cos, sin: rope(rope_rounding="products")(q, w, cos[..., :32], sin[..., :32]),
        rope(rope_rounding="products"),  # as if they were halves, of tables for all of a row
        summands(rotate_half),
    ),
    "halves, comfy-kitchen": Model(
        lambda dtype: heads(dtype, dtype, 128, interleaved=False),
        comfy,
        rope(rope_rounding="addcmul"),
        rope(rope_rounding="products"),
        summands(rotate_half),
    ),
    "Gemma 3": Model(
        lambda dtype: heads(dtype, dtype, 128, interleaved=False),
        centered,
        rope(casting_mode="gemma", weight_offset=1.0, rope_rounding="products"),
        rope(weight_offset=1.0, rope_rounding="products"),
        summands(rotate_half, centered_norm),
    ),
    "Gemma 4, queries, keys and values": Model(
        lambda dtype: heads(dtype, dtype, 128, interleaved=False),
        gemma4,
        gemma4_fused(),
        gemma4_fused(rope_rounding="once"),
        lambda *inputs: 4.0,  # the largest summands
    ),
    "Qwen3-Next, a quarter": Model(
        lambda dtype: heads(dtype, dtype, 32, interleaved=False),
        centered,
        rope(casting_mode="gemma", weight_offset=1.0, rope_rounding="products", full_tables=True),
        rope(casting_mode="gemma", weight_offset=1.0, rope_rounding="products"),
        summands(rotate_half, centered_norm),
    ),
    "Qwen-Image": Model(
        lambda dtype: heads(dtype, torch.float32, 128, interleaved=True),
        qwen_image,
        lambda q, w, cos, sin: rope(interleaved=True)(q, w, cos[..., ::2], sin[..., ::2]),
        lambda q, w, cos, sin: rope()(q, w, cos[..., ::2], sin[..., ::2]),
        summands(rotate_neighbours),
    ),
    "LTX, across heads": Model(
        ltx_heads,
        ltx_attention,
        rope(across_heads=True, interleaved=True),
        lambda q, w, cos, sin: rope(interleaved=True)(q, w.unflatten(0, (4, 64)), cos, sin),
        lambda q, w, cos, sin: summands(rotate_neighbours)(
            q.flatten(-2), w, cos.flatten(-2), sin.flatten(-2)
        ).reshape(q.shape),
    ),
    "bias, diffusers": Model(
        ltx,
        diffusers_bias,
        modulate(scale_offset=0.0),
        lambda x, weight, bias: rms_norm(x, weight, bias=bias),
        shift_of,
    ),
    "bias, mamba_ssm": Model(
        ltx,
        mamba_bias,
        lambda x, weight, bias: rms_norm(x, weight, 1e-5, bias=bias),
        lambda x, weight, bias: rms_norm(x, weight, 1e-5, bias=bias, casting_mode="llama"),
        shift_of,
    ),
    "Z-Image, residual": Model(
        residual(rows=1),
        z_image,
        rounded(rms_norm_add, "gate", **LLAMA, **TANH),
        rounded(rms_norm_add, "gate", **LLAMA, **TANH, round_intermediates=False),
        lambda y, h, *_: h,
    ),
    "Z-Image, scale": Model(
        residual(rows=1),
        lambda y, h, weight, scale: llama(y, weight) * scale,
        lambda y, h, *given: rms_norm_mul(y, *given, 1e-5, **LLAMA, round_intermediates=True),
        lambda y, h, *given: rms_norm_mul(y, *given, 1e-5, round_intermediates=True),
    ),
    "Z-Image, scale as modulation": Model(
        residual(rows=1),
        lambda y, h, weight, scale: llama(y, weight) * scale,
        lambda y, h, *given: rms_norm_modulate(
            y, *given, None, 1e-5, **LLAMA, scale_offset=0.0, round_intermediates=True
        ),
        lambda y, h, *given: rms_norm_modulate(y, *given, None, 1e-5, **LLAMA, scale_offset=0.0),
    ),
    "Z-Image, block": Model(
        residual(weights=2, rows=2),
        z_image_block,
        rounded(rms_norm_add_rms_norm, "gate", "next_scale", **LLAMA, **TANH),
        rounded(rms_norm_add_rms_norm, "gate", "next_scale", **LLAMA),
        lambda y, h, w, next_w, gate, scale: h * next_w * (1 + scale),
    ),
    "DiT block": Model(
        residual(rows=3),
        dit_block,
        rounded(add_rms_norm, *NEXT, **LLAMA),
        rounded(add_rms_norm, *NEXT, **LLAMA, modulation="addcmul"),
        lambda *tensors: tensors[-1],
    ),
    "Mamba2, residual_in_fp32": Model(
        mamba_residual,
        mamba,
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
        granite,
        rounded(add_rms_norm, **LLAMA, alpha=0.22),
        rounded(add_rms_norm, **LLAMA, beta=0.22),
    ),
    "MiniMax": Model(
        residual(),
        minimax,
        rounded(add_rms_norm, **LLAMA, **MINIMAX),
        rounded(add_rms_norm, **LLAMA, **MINIMAX, round_intermediates=False),
    ),
    "Gemma 3n": Model(
        residual(),
        gemma_3n,
        gemma_3n_of_ours(0.5**0.5),
        gemma_3n_of_ours(0.71),
        lambda y, h, weight: h,
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
