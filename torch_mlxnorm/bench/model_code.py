"""Norms as the code of public models has them, in PyTorch: upcasts and roundings included."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def diffusers_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """diffusers.models.normalization.RMSNorm without a weight."""
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + eps)).to(x.dtype)


def transformers_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """transformers' Qwen3RMSNorm and diffusers' RMSNorm with a weight."""
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return weight * (x.float() * torch.rsqrt(variance + eps)).to(x.dtype)


def centered_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Gemma3RMSNorm and Qwen3NextRMSNorm, transformers."""
    variance = x.float().pow(2).mean(-1, keepdim=True)
    return (x.float() * torch.rsqrt(variance + 1e-6) * (1.0 + weight.float())).type_as(x)


def normalized(x: Tensor) -> Tensor:
    """Of float32."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def llama(x: Tensor, weight: Tensor) -> Tensor:
    """GraniteRMSNorm and MiniMaxRMSNorm, transformers; RMSNorm, diffusers."""
    return weight * normalized(x.float()).to(x.dtype)


def gemma_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Gemma3nRMSNorm, transformers."""
    return (normalized(x.float()) * weight.float()).to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """transformers'."""
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def rotate_neighbours(x: Tensor) -> Tensor:
    """In diffusers' apply_rotary_emb, and transformers' rotate_half of GLM-4."""
    real, imag = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-imag, real], dim=-1).flatten(-2)


def rotated(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """apply_rotary_pos_emb, transformers, of the front of a row."""
    front, rest = q[..., : cos.shape[-1]], q[..., cos.shape[-1] :]
    return torch.cat([front * cos + rotate_half(front) * sin, rest], dim=-1)


def diffusers_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """diffusers.models.normalization.RMSNorm(bias=True), in 16 bits."""
    return diffusers_norm(x) * weight + bias


def mamba_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """mamba_ssm.ops.triton.layer_norm.rms_norm_ref."""
    return (normalized(x.float()) * weight.float() + bias.float()).to(x.dtype)


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


def flux(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q = transformers_norm(q, weight)
    return (q.float() * cos + rotate_neighbours(q).float() * sin).to(q.dtype)


def transformers(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotated(transformers_norm(q, weight), cos, sin)


def comfy(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """comfy-kitchen's halves."""
    q = transformers_norm(q, weight)
    return torch.addcmul(q * cos, rotate_half(q), sin)


def centered(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotated(centered_norm(q, weight), cos, sin)


def gemma4(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gemma4TextAttention: four heads of queries, two of keys and two of values."""
    queries, keys = gemma_norm(q, weight), gemma_norm(q[:, :2], 0.5 * weight)
    values = gemma_norm(q[:, 2:], torch.ones_like(weight))
    return torch.cat([rotated(queries, cos, sin), rotated(keys, cos, sin), values], dim=1)


def qwen_image(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """apply_rotary_emb_qwen, diffusers, with complex numbers."""
    q = transformers_norm(q, weight)
    pairs = torch.view_as_complex(q.float().unflatten(-1, (-1, 2)))
    turned = pairs * torch.complex(cos[..., ::2].float(), sin[..., ::2].float())
    return torch.view_as_real(turned).flatten(-2).type_as(q)


def ltx_attention(q: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """LTXVideoAttnProcessor, diffusers."""
    return flux(q.flatten(-2), weight, cos.flatten(-2), sin.flatten(-2)).reshape(q.shape)
