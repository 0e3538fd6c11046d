"""Each operator as plain PyTorch in float64: what it means, and the oracle of the tests.

The functions take the operator's arguments, on any device, and return what the operator would
before its last rounding: float64 tensors on the CPU, a tuple where there are several results.
``N`` and ``R`` are those of :mod:`torch_mlxnorm.functional`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_mlxnorm.functional import Activation, CastingMode

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda s: s,
    "silu": F.silu,
    "gelu_tanh": lambda s: F.gelu(s, approximate="tanh"),
    "sigmoid": torch.sigmoid,
}


def _exact(t: Tensor) -> Tensor:
    return t.detach().cpu().double()


def _rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype).double()


def _shared(scale: Tensor, dim: int) -> Tensor:
    """One element, or ``[1, ..., 1, dim]``, as the factor ``[dim]`` that all rows share."""
    return _exact(scale).reshape(scale.shape[-1:]).expand(dim)


def _norm(
    dtype: torch.dtype, eps: float | None, weight_offset: float, casting_mode: CastingMode
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """``N`` for inputs of a dtype."""
    eps = torch.finfo(torch.float32).eps if eps is None else eps

    def N(x: Tensor, weight: Tensor | None) -> Tensor:
        x = _exact(x)
        normalized = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
        if weight is None:
            return normalized
        if casting_mode == "llama":
            normalized = _rounded(normalized, dtype)
        return normalized * (_exact(weight) + weight_offset)

    return N


def _rounding(dtype: torch.dtype, round_intermediates: bool) -> Callable[[Tensor], Tensor]:
    """``R`` for inputs of a dtype."""
    return lambda t: _rounded(t, dtype) if round_intermediates else t


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
) -> Tensor:
    """``x * rsqrt(mean(x**2) + eps) * (weight + weight_offset)``."""
    N = _norm(x.dtype, eps, weight_offset, casting_mode)
    return N(x, weight)


def rms_norm_mul(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    eps: float | None = 1e-6,
    *,
    activation: Activation = "none",
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
) -> Tensor:
    """``R(N(x, weight)) * activation(scale)``."""
    N = _norm(x.dtype, eps, weight_offset, casting_mode)
    R = _rounding(x.dtype, round_intermediates)
    R_scale = _rounding(scale.dtype, round_intermediates)
    factor = _exact(scale) if scale.shape == x.shape else _shared(scale, x.shape[-1])
    return R(N(x, weight)) * R_scale(_ACTIVATIONS[activation](factor))


def rms_norm_triple(
    x: Tensor,
    weight_a: Tensor | None,
    weight_b: Tensor | None,
    weight_c: Tensor | None,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
) -> tuple[Tensor, Tensor, Tensor]:
    """``N(x, weight_a), N(x, weight_b), N(x, weight_c)``."""
    N = _norm(x.dtype, eps, weight_offset, casting_mode)
    return N(x, weight_a), N(x, weight_b), N(x, weight_c)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
) -> tuple[Tensor, Tensor]:
    """``N(r, weight), r`` with ``r = R(x + residual)``."""
    N = _norm(x.dtype, eps, weight_offset, casting_mode)
    R = _rounding(x.dtype, round_intermediates)
    r = R(_exact(x) + _exact(residual))
    return N(r, weight), r


def rms_norm_add(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float | None = 1e-6,
    *,
    scale: Tensor | None = None,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
) -> Tensor:
    """``R(residual + R(N(x, weight))) * scale``."""
    N = _norm(x.dtype, eps, weight_offset, casting_mode)
    R = _rounding(x.dtype, round_intermediates)
    r = _exact(residual) + R(N(x, weight))
    return r if scale is None else R(r) * _shared(scale, x.shape[-1])


def rms_norm_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    next_weight: Tensor | None,
    eps: float | None = 1e-6,
    *,
    scale: Tensor | None = None,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
) -> tuple[Tensor, Tensor]:
    """``r, N(r, next_weight)`` with ``r = R(R(residual + R(N(x, weight))) * scale)``."""
    N = _norm(x.dtype, eps, weight_offset, casting_mode)
    R = _rounding(x.dtype, round_intermediates)
    r = R(_exact(residual) + R(N(x, weight)))
    if scale is not None:
        r = R(r * _shared(scale, x.shape[-1]))
    return r, N(r, next_weight)


def fused_post_attn_triple_norm(
    hidden: Tensor,
    attn_out: Tensor,
    post_attn_weight: Tensor,
    weight_a: Tensor | None,
    weight_b: Tensor | None,
    weight_c: Tensor | None,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``r, N(r, weight_a), N(r, weight_b), N(r, weight_c)`` with
    ``r = R(hidden + R(N(attn_out, post_attn_weight)))``."""
    N = _norm(hidden.dtype, eps, weight_offset, casting_mode)
    R = _rounding(hidden.dtype, round_intermediates)
    r = R(_exact(hidden) + R(N(attn_out, post_attn_weight)))
    return r, N(r, weight_a), N(r, weight_b), N(r, weight_c)


def fused_post_ff_norm2_endlayer(
    attn_out: Tensor,
    moe_accum: Tensor,
    residual: Tensor,
    w2: Tensor,
    w3: Tensor,
    layer_scalar: Tensor,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
) -> tuple[Tensor, Tensor]:
    """``m, R(residual + R(N(m, w3))) * layer_scalar`` with
    ``m = R(attn_out + R(N(moe_accum, w2)))``."""
    N = _norm(attn_out.dtype, eps, weight_offset, casting_mode)
    R = _rounding(attn_out.dtype, round_intermediates)
    m = R(_exact(attn_out) + R(N(moe_accum, w2)))
    factor = _shared(layer_scalar, m.shape[-1])
    return m, R(_exact(residual) + R(N(m, w3))) * factor


def fused_moe_wsum_post_ff_norm2_endlayer(
    expert_outputs: Tensor,
    routing_weights: Tensor,
    attn_out: Tensor,
    residual: Tensor,
    w2: Tensor,
    w3: Tensor,
    layer_scalar: Tensor,
    eps: float | None = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
) -> tuple[Tensor, Tensor]:
    """``fused_post_ff_norm2_endlayer`` with
    ``moe_accum = R(sum over k of routing_weights[..., k] * expert_outputs[..., k, :])``."""
    R = _rounding(expert_outputs.dtype, round_intermediates)
    moe_accum = R((_exact(routing_weights).unsqueeze(-1) * _exact(expert_outputs)).sum(dim=-2))
    return fused_post_ff_norm2_endlayer(
        attn_out,
        moe_accum,
        residual,
        w2,
        w3,
        layer_scalar,
        eps,
        weight_offset=weight_offset,
        casting_mode=casting_mode,
        round_intermediates=round_intermediates,
    )
