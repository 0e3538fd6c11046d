"""Each operator as plain PyTorch in float64: what it means, and the oracle of the tests.

The functions take the operator's arguments, on any device, and return what the operator would
before its last rounding: float64 tensors on the CPU, a tuple where there are several results.
``N`` and ``R`` are those of :mod:`torch_mlxnorm.functional`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_mlxnorm import functional
from torch_mlxnorm._roles import OPS, ROLES
from torch_mlxnorm.functional import Activation, GateActivation

P = ParamSpec("P")
T = TypeVar("T")

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda s: s,
    "silu": F.silu,
    # (1 + tanh(u)) / 2 = sigmoid(2 u), which does not cancel.
    "gelu_tanh": lambda s: s * torch.sigmoid((8 / torch.pi) ** 0.5 * (s + 0.044715 * s**3)),
    "sigmoid": torch.sigmoid,
}

_GATE_ACTIVATIONS: dict[GateActivation, Callable[[Tensor], Tensor]] = {
    "none": lambda gate: gate,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def _exact(t: Tensor) -> Tensor:
    return t.detach().cpu().double()


def _rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype).double()


def _defines(function: Callable[P, T]) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Makes a function with the parameters of the operator's, but for ``out``, from its formula.
    That gets what it names: tensors in float64, options, one by one or all, ``N``, and ``R``, which
    rounds to the dtype of the inputs or to that of the tensor it is told; ``r`` always does."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name != "out"]
    signature = signature.replace(parameters=parameters)
    roles = OPS[function.__name__]

    def decorate(formula: Callable[..., T]) -> Callable[P, T]:
        wanted = inspect.signature(formula).parameters

        @functools.wraps(formula)
        def reference(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            first = given[next(iter(roles))]
            values = {name: None if given[name] is None else _exact(given[name]) for name in roles}
            for name, value in values.items():
                if value is not None and value.numel() == 1:  # whatever the shape
                    values[name] = value.flatten() if ROLES[roles[name]].broadcasts else value

            def R(t: Tensor, like: str = next(iter(roles))) -> Tensor:
                return _rounded(t, given[like].dtype) if given.get("round_intermediates") else t

            eps = torch.finfo(torch.float32).eps if given["eps"] is None else given["eps"]

            def N(x: Tensor, weight: Tensor | None) -> Tensor:
                normalized = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
                if weight is None:
                    return normalized
                if given["casting_mode"] == "llama":
                    normalized = _rounded(normalized, first.dtype)
                return normalized * (weight + given["weight_offset"])

            def r(t: Tensor) -> Tensor:
                return _rounded(t, first.dtype)

            available = {**given, **values, "eps": eps, "N": N, "R": R, "r": r, "options": given}
            return formula(**{name: available[name] for name in wanted})

        reference.__signature__ = signature  # type: ignore[attr-defined]
        return reference

    return decorate


@_defines(functional.rms_norm)
def rms_norm(x, weight, bias, activation, N):
    """``activation(N(x, weight) + bias)`` with
    ``N(x, weight) = x * rsqrt(mean(x**2) + eps) * (weight + weight_offset)``."""
    n = N(x, weight)
    return _ACTIVATIONS[activation](n if bias is None else n + bias)


@_defines(functional.rms_norm_mul)
def rms_norm_mul(x, weight, scale, activation, N, R):
    """``R(N(x, weight)) * activation(scale)``."""
    return R(N(x, weight)) * R(_ACTIVATIONS[activation](scale), like="scale")


@_defines(functional.rms_norm_modulate)
def rms_norm_modulate(x, weight, scale, shift, scale_offset, modulation, N, R):
    """``N(x, weight) * (scale_offset + scale) + shift``."""
    S = functools.partial(R, like="scale")
    return _modulated(N(x, weight), scale, shift, scale_offset, modulation, R, S)


def _modulated(n, scale, shift, offset, modulation, R, S):
    if scale is not None:
        n = R(n)
        match modulation:
            case "steps":
                n = R(n * S(scale + offset))
            case "addcmul":
                n = R(n * offset + n * scale)
            case _:
                n = n * (scale + offset)
    if shift is not None:
        n = (R(n) if scale is None else n) + shift
    return n


@_defines(functional.gated_rms_norm)
def gated_rms_norm(x, gate, weight, bias, norm_before_gate, group_size, activation, N, R):
    """``N(x * activation(gate), weight) + bias``, or
    ``R(N(x, weight) + bias) * activation(gate)``."""
    size = group_size or x.shape[-1]
    groups = (x.shape[-1] // size, size)

    def of_groups(t: Tensor) -> Tensor:
        w = None if weight is None else weight.unflatten(-1, groups)
        n = N(t.unflatten(-1, groups), w).flatten(-2)
        return n if bias is None else n + bias

    gate = _ACTIVATIONS[activation](gate)
    return R(of_groups(x)) * gate if norm_before_gate else of_groups(x * gate)


@_defines(functional.channel_rms_norm)
def channel_rms_norm(x, gamma, bias, eps, form, silu, weight_offset, N, r):
    """``silu(r(r(r(x / max(norm(x), eps)) * sqrt(C)) * gamma) + bias)`` over dimension 1."""
    gamma, bias = (_per_channel(t, x.dim()) for t in (gamma, bias))
    x = x.movedim(1, -1)
    stored_eps = r(x.new_tensor(eps)).item() or eps
    match form:
        case "rms":
            steps = [lambda _: N(x, gamma)]
        case "rms_steps":
            mean = r(r(x.square()).mean(-1, keepdim=True))
            steps = [lambda _: x / r(r(mean + stored_eps).sqrt())]
        case "normalize":
            norm = r(x.square().sum(-1, keepdim=True).sqrt()).clamp_min(stored_eps)
            steps = [lambda _: x / norm, lambda t: t * x.shape[-1] ** 0.5]
        case _:
            norm = x.square().sum(-1, keepdim=True).sqrt().clamp_min(eps)
            steps = [lambda _: x / norm, lambda t: t * x.shape[-1] ** 0.5]
    if gamma is not None and form != "rms":
        steps.append(lambda t: t * (gamma + weight_offset))
    if bias is not None:
        steps.append(lambda t: t + bias)
    if silu:
        steps.append(F.silu)
    t = x
    for step in steps:
        t = step(r(t))
    return t.movedim(-1, 1)


def _per_channel(t, rank):
    """As what has its channels last is multiplied by it."""
    if t is None or t.dim() == 1:
        return t
    return t[(None,) * (rank - t.dim())].movedim(1, -1)


def _norm_rope(x, weight, cos, sin, options, N, R):
    across_heads, interleaved = options["across_heads"], options["interleaved"]

    def pairs(t):
        return (t[..., ::2], t[..., 1::2]) if interleaved else t.chunk(2, dim=-1)

    def product(y, factor, rounded):
        return R(y * factor) if rounded else y * factor

    y = R(N(x.flatten(-2), weight).reshape(x.shape) if across_heads else N(x, weight))
    full = options["full_tables"] or 2 * cos.shape[-1] > x.shape[-1]
    rotated = cos.shape[-1] * (1 if full else 2)
    y0, y1 = pairs(y[..., :rotated])
    (c0, c1), (s0, s1) = (pairs(t) if full else (t, t) for t in (cos, sin))
    rounding = options["rope_rounding"]
    first, second = rounding != "once", rounding == "products"
    z0 = product(y0, c0, first) - product(y1, s0, second)
    z1 = product(y1, c1, first) + product(y0, s1, second)
    front = torch.stack([z0, z1], dim=-1).flatten(-2) if interleaved else torch.cat([z0, z1], -1)
    return torch.cat([front, y[..., rotated:]], dim=-1)


@_defines(functional.rms_norm_rope)
def rms_norm_rope(x, weight, cos, sin, options, N, R):
    """``N(x, weight)``, the pairs at the front of each row rotated."""
    return _norm_rope(x, weight, cos, sin, options, N, R)


@_defines(functional.qk_norm_rope)
def qk_norm_rope(q, k, q_weight, k_weight, cos, sin, options, N, R):
    """:func:`rms_norm_rope` of q and of k."""
    return (
        _norm_rope(q, q_weight, cos, sin, options, N, R),
        _norm_rope(k, k_weight, cos, sin, options, N, R),
    )


@_defines(functional.qkv_norm_rope)
def qkv_norm_rope(q, k, v, q_weight, k_weight, cos, sin, options, N, R):
    """:func:`rms_norm_rope` of q and of k, and ``N(v, None)``."""
    nothing = cos[..., :0]
    return (
        _norm_rope(q, q_weight, cos, sin, options, N, R),
        _norm_rope(k, k_weight, cos, sin, options, N, R),
        _norm_rope(v, None, nothing, nothing, options, N, R),
    )


@_defines(functional.rms_norm_triple)
def rms_norm_triple(x, weight_a, weight_b, weight_c, N):
    """``N(x, weight_a), N(x, weight_b), N(x, weight_c)``."""
    return N(x, weight_a), N(x, weight_b), N(x, weight_c)


@_defines(functional.add_rms_norm)
def add_rms_norm(
    x, residual, weight, gate, next_scale, next_shift,
    gate_activation, alpha, beta, next_scale_offset, modulation, N, R,
):  # fmt: skip
    """``N(r, weight) * (next_scale_offset + next_scale) + next_shift, r`` with
    ``r = R(R(beta * residual) + R(alpha * R(R(gate_activation(gate)) * x)))``."""
    r = R(_gated_sum(x, residual, gate, gate_activation, alpha, beta, R), like="residual")
    S = functools.partial(R, like="next_scale")
    n = _modulated(N(r, weight), next_scale, next_shift, next_scale_offset, modulation, R, S)
    return n, r


def _gated_sum(branch, residual, gate, gate_activation, alpha, beta, R):
    if gate is not None:
        branch = R(branch * R(_GATE_ACTIVATIONS[gate_activation](gate), like="gate"))
    return R(beta * residual, like="residual") + R(alpha * branch)


@_defines(functional.rms_norm_add)
def rms_norm_add(x, residual, weight, scale, gate, gate_activation, alpha, beta, N, R):
    """``R(R(beta * residual) + R(alpha * R(R(gate_activation(gate)) * n))) * scale`` with
    ``n = R(N(x, weight))``."""
    r = _gated_sum(R(N(x, weight)), residual, gate, gate_activation, alpha, beta, R)
    return r if scale is None else R(r, like="residual") * scale


@_defines(functional.rms_norm_add_rms_norm)
def rms_norm_add_rms_norm(
    x, residual, weight, next_weight, scale, gate, next_scale, next_shift,
    gate_activation, alpha, beta, next_scale_offset, modulation, N, R,
):  # fmt: skip
    """``r, N(r, next_weight) * (next_scale_offset + next_scale) + next_shift`` with ``r`` as in
    ``rms_norm_add``."""
    R_sum = functools.partial(R, like="residual")
    r = R_sum(_gated_sum(R(N(x, weight)), residual, gate, gate_activation, alpha, beta, R))
    if scale is not None:
        r = R_sum(r * scale)
    S = functools.partial(R, like="next_scale")
    n = _modulated(N(r, next_weight), next_scale, next_shift, next_scale_offset, modulation, R, S)
    return r, n


@_defines(functional.fused_post_attn_triple_norm)
def fused_post_attn_triple_norm(
    hidden, attn_out, post_attn_weight, weight_a, weight_b, weight_c, N, R
):
    """``r, N(r, weight_a), N(r, weight_b), N(r, weight_c)`` with
    ``r = R(hidden + R(N(attn_out, post_attn_weight)))``."""
    r = R(hidden + R(N(attn_out, post_attn_weight)))
    return r, N(r, weight_a), N(r, weight_b), N(r, weight_c)


def _post_ff_norm2(attn_out, moe_accum, residual, w2, w3, layer_scalar, N, R):
    m = R(attn_out + R(N(moe_accum, w2)))
    return m, R(residual + R(N(m, w3))) * layer_scalar


@_defines(functional.fused_post_ff_norm2_endlayer)
def fused_post_ff_norm2_endlayer(attn_out, moe_accum, residual, w2, w3, layer_scalar, N, R):
    """``m, R(residual + R(N(m, w3))) * layer_scalar`` with
    ``m = R(attn_out + R(N(moe_accum, w2)))``."""
    return _post_ff_norm2(attn_out, moe_accum, residual, w2, w3, layer_scalar, N, R)


@_defines(functional.fused_moe_wsum_post_ff_norm2_endlayer)
def fused_moe_wsum_post_ff_norm2_endlayer(
    expert_outputs, routing_weights, attn_out, residual, w2, w3, layer_scalar, N, R
):
    """``fused_post_ff_norm2_endlayer`` with
    ``moe_accum = R(sum over k of routing_weights[..., k] * expert_outputs[..., k, :])``."""
    moe_accum = R((routing_weights.unsqueeze(-1) * expert_outputs).sum(dim=-2))
    return _post_ff_norm2(attn_out, moe_accum, residual, w2, w3, layer_scalar, N, R)
