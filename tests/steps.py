"""The formula of every op, step by step, and what a step may be done with: PyTorch's single ops, or
intervals that hold what float32 kernels may give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from oracle import GELU_ARGUMENT, Interval
from torch import Tensor

from torch_mlxnorm import (
    Activation,
    CastingMode,
    ChannelForm,
    GateActivation,
    Modulation,
    RopeRounding,
    rms_norm,
)

V = TypeVar("V")
Operands = Mapping[str, Any]


class Steps(Protocol[V]):
    """Each step ends with R, the rounding of round_intermediates. Before a result is written, that
    rounds nothing that writing would not. `like`: to that tensor's dtype, not the inputs'."""

    def norm(self, x: V, weight: V | None, bias: V | None = None) -> V: ...
    def norm_of_heads(self, x: V, weight: V | None) -> V: ...
    def add(self, a: V, b: V, like: Any = None) -> V: ...
    def mul(self, x: V, factor: V, like: Any = None) -> V: ...
    def activated(self, x: V) -> V: ...
    def activated_gate(self, gate: V) -> V: ...
    def times(self, x: V, factor: str, like: Any = None) -> V: ...
    def modulated(self, x: V, scale: V | None, shift: V | None, offset: str) -> V: ...
    def norm_of_channels(self, x: V, gamma: V | None, bias: V | None) -> V: ...
    def gated_norm(self, x: V, gate: V, weight: V | None, bias: V | None) -> V: ...
    def rotated(self, y: V, cos: V, sin: V) -> V: ...
    def expert_sum(self, experts: V, routing_weights: V) -> V: ...


# ---- formulas -----------------------------------------------------------------------------------


def _rms_norm(do: Steps[V], t: Operands) -> tuple[V, ...]:
    return (do.activated(do.norm(t["x"], t["weight"], t["bias"])),)


def _rms_norm_mul(do: Steps[V], t: Operands) -> tuple[V, ...]:
    return (do.mul(do.norm(t["x"], t["weight"]), do.activated(t["scale"])),)


def _rms_norm_modulate(do: Steps[V], t: Operands) -> tuple[V, ...]:
    n = do.norm(t["x"], t["weight"])
    return (do.modulated(n, t["scale"], t["shift"], "scale_offset"),)


def _gated_rms_norm(do: Steps[V], t: Operands) -> tuple[V, ...]:
    return (do.gated_norm(t["x"], t["gate"], t["weight"], t["bias"]),)


def _channel_rms_norm(do: Steps[V], t: Operands) -> tuple[V, ...]:
    return (do.norm_of_channels(t["x"], t["gamma"], t["bias"]),)


def _rms_norm_rope(do: Steps[V], t: Operands) -> tuple[V, ...]:
    return (do.rotated(do.norm_of_heads(t["x"], t["weight"]), t["cos"], t["sin"]),)


def _qk_norm_rope(do: Steps[V], t: Operands) -> tuple[V, ...]:
    norms = (do.norm_of_heads(t["q"], t["q_weight"]), do.norm_of_heads(t["k"], t["k_weight"]))
    return tuple(do.rotated(y, t["cos"], t["sin"]) for y in norms)


def _qkv_norm_rope(do: Steps[V], t: Operands) -> tuple[V, ...]:
    return *_qk_norm_rope(do, t), do.norm_of_heads(t["v"], None)


def _rms_norm_triple(do: Steps[V], t: Operands) -> tuple[V, ...]:
    return _three_norms(do, t["x"], t)


def _three_norms(do: Steps[V], x: V, t: Operands) -> tuple[V, ...]:
    return tuple(do.norm(x, t[weight]) for weight in ("weight_a", "weight_b", "weight_c"))


def _add_rms_norm(do: Steps[V], t: Operands) -> tuple[V, ...]:
    r = _gated_sum(do, t["x"], t)
    return _modulated_norm(do, r, t["weight"], t), r


def _gated_sum(do: Steps[V], branch: V, t: Operands) -> V:
    if t["gate"] is not None:
        branch = do.mul(branch, do.activated_gate(t["gate"]))
    residual = t["residual"]
    return do.add(do.times(residual, "beta", residual), do.times(branch, "alpha"), residual)


def _modulated_norm(do: Steps[V], x: V, weight: V | None, t: Operands) -> V:
    n = do.norm(x, weight)
    return do.modulated(n, t["next_scale"], t["next_shift"], "next_scale_offset")


def _rms_norm_add(do: Steps[V], t: Operands) -> tuple[V, ...]:
    r = _gated_sum(do, do.norm(t["x"], t["weight"]), t)
    return (r if t["scale"] is None else do.mul(r, t["scale"], t["residual"]),)


def _rms_norm_add_rms_norm(do: Steps[V], t: Operands) -> tuple[V, ...]:
    (r,) = _rms_norm_add(do, t)
    return r, _modulated_norm(do, r, t["next_weight"], t)


def _fused_post_attn_triple_norm(do: Steps[V], t: Operands) -> tuple[V, ...]:
    r = do.add(t["hidden"], do.norm(t["attn_out"], t["post_attn_weight"]))
    return r, *_three_norms(do, r, t)


def _end_of_layer(do: Steps[V], moe_accum: V, t: Operands) -> tuple[V, ...]:
    mlp_down = do.add(t["attn_out"], do.norm(moe_accum, t["w2"]))
    hidden = do.add(t["residual"], do.norm(mlp_down, t["w3"]))
    return mlp_down, do.mul(hidden, t["layer_scalar"])


def _fused_post_ff_norm2_endlayer(do: Steps[V], t: Operands) -> tuple[V, ...]:
    return _end_of_layer(do, t["moe_accum"], t)


def _fused_moe_wsum_post_ff_norm2_endlayer(do: Steps[V], t: Operands) -> tuple[V, ...]:
    return _end_of_layer(do, do.expert_sum(t["expert_outputs"], t["routing_weights"]), t)


FORMULAS: dict[str, Callable[[Steps[Any], Operands], tuple[Any, ...]]] = {
    "rms_norm": _rms_norm,
    "rms_norm_mul": _rms_norm_mul,
    "rms_norm_modulate": _rms_norm_modulate,
    "gated_rms_norm": _gated_rms_norm,
    "channel_rms_norm": _channel_rms_norm,
    "rms_norm_rope": _rms_norm_rope,
    "qk_norm_rope": _qk_norm_rope,
    "qkv_norm_rope": _qkv_norm_rope,
    "rms_norm_triple": _rms_norm_triple,
    "add_rms_norm": _add_rms_norm,
    "rms_norm_add": _rms_norm_add,
    "rms_norm_add_rms_norm": _rms_norm_add_rms_norm,
    "fused_post_attn_triple_norm": _fused_post_attn_triple_norm,
    "fused_post_ff_norm2_endlayer": _fused_post_ff_norm2_endlayer,
    "fused_moe_wsum_post_ff_norm2_endlayer": _fused_moe_wsum_post_ff_norm2_endlayer,
}


# ---- what steps are done with -------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What an op's keyword arguments say, defaults filled in."""

    eps: float | None = 1e-6
    weight_offset: float = 0.0
    casting_mode: CastingMode = "gemma"
    round_intermediates: bool = False
    activation: Activation = "none"
    scale_offset: float = 1.0
    modulation: Modulation = "steps"
    next_scale_offset: float = 1.0
    norm_before_gate: bool = False
    group_size: int = 0
    interleaved: bool = False
    full_tables: bool = False
    across_heads: bool = False
    rope_rounding: RopeRounding = "once"
    gate_activation: GateActivation = "none"
    alpha: float = 1.0
    beta: float = 1.0
    form: ChannelForm = "normalize"
    silu: bool = False


def in_groups(group_size: int, *tensors: Tensor | None) -> list[Any]:
    """With a row for each group; with a size of 0 the whole row is one."""
    return [t if t is None else t.unflatten(-1, (-1, group_size or t.shape[-1])) for t in tensors]


def _fitted(factor: Tensor, x: Tensor) -> Tensor:
    """One element, or what broadcasts to x, to multiply x. Never 0-d: PyTorch would round that to
    x's dtype. Never of more dimensions than x."""
    return factor if 0 < factor.dim() <= x.dim() else factor.reshape(factor.shape[-1:] or (1,))


def _turns(options: Options, dim: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each rotated element of a row its partner, and what they are multiplied by."""
    full = options.full_tables or 2 * cos.shape[-1] > dim
    count = cos.shape[-1] * (1 if full else 2)
    i = torch.arange(count)
    if options.interleaved:
        pair, is_first, partner = i // 2, i % 2 == 0, i ^ 1
    else:
        half = count // 2
        pair, is_first, partner = i % max(half, 1), i < half, (i + half) % max(count, 1)
    column = i if full else pair
    return partner, cos[..., column], torch.where(is_first, -1, 1) * sin[..., column]


def activate(activation: Activation | GateActivation, t: Tensor) -> Tensor:
    """As PyTorch does, in the tensor's dtype."""
    match activation:
        case "silu":
            return F.silu(t)
        case "gelu_tanh":
            return F.gelu(t, approximate="tanh")
        case "sigmoid":
            return torch.sigmoid(t)
        case "tanh":
            return torch.tanh(t)
        case _:
            return t


def activate_in_float32(activation: Activation | GateActivation, scale: Tensor) -> Tensor:
    return activate(activation, scale.float())


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Float32's, of float32 values in float64, where the product is exact. A sum that is not is
    made odd: rounded twice, a tie would forget what lies beyond float64."""
    product = a * b
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(torch.int64)
    outwards = torch.where((error > 0) == (total > 0), 1, -1)
    inexact = error.isfinite() & (error != 0) & (bits % 2 == 0)
    return torch.where(inexact, bits + outwards, bits).view(torch.float64).float().double()


@dataclass(frozen=True)
class Chain:
    """Single ops: mlxnorm::rms_norm, and PyTorch's. Each rounds its result."""

    options: Options

    def norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        o = self.options
        offset, mode = o.weight_offset, o.casting_mode
        return rms_norm(x, weight, o.eps, bias=bias, weight_offset=offset, casting_mode=mode)

    def add(self, a: Tensor, b: Tensor, like: Tensor | None = None) -> Tensor:
        return a + b

    def mul(self, x: Tensor, factor: Tensor, like: Tensor | None = None) -> Tensor:
        return (x * _fitted(factor, x)).to(x.dtype)

    def times(self, x: Tensor, factor: str, like: Tensor | None = None) -> Tensor:
        return (x.float() * getattr(self.options, factor)).to(x.dtype)

    def activated(self, x: Tensor) -> Tensor:
        on_cpu = activate_in_float32(self.options.activation, x.cpu())
        return on_cpu.to(x.dtype).to(x.device)

    def activated_gate(self, gate: Tensor) -> Tensor:
        on_cpu = activate_in_float32(self.options.gate_activation, gate.cpu())
        return on_cpu.to(gate.dtype).to(gate.device)

    def modulated(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, offset_name: str
    ) -> Tensor:
        if scale is None:
            return x if shift is None else (x + _fitted(shift, x)).to(x.dtype)
        scale, offset = _fitted(scale, x), getattr(self.options, offset_name)
        match self.options.modulation:
            case "steps":
                x = self.mul(x, scale + offset)
            case "addcmul":
                x = (x.float() * offset + x.float() * scale.float()).to(x.dtype)
            case _:
                product = x.float() * (scale.float() + offset)
                total = product if shift is None else product + _fitted(shift, x).float()
                return total.to(x.dtype)
        return x if shift is None else (x + _fitted(shift, x)).to(x.dtype)

    def gated_norm(
        self, x: Tensor, gate: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        x, gate, weight, bias = in_groups(self.options.group_size, x, gate, weight, bias)
        gate = activate_in_float32(self.options.activation, gate.cpu()).to(gate.device)
        if self.options.norm_before_gate:
            result = (self.norm(x, weight, bias).float() * gate).to(x.dtype)
        else:
            result = self.norm(x.float() * gate, weight, bias).to(x.dtype)
        return result.flatten(-2)

    def norm_of_channels(self, x: Tensor, gamma: Tensor | None, bias: Tensor | None) -> Tensor:
        assert self.options.form == "rms" and not self.options.silu
        normed = self.norm(x, gamma)
        return normed if bias is None else (normed.float() + bias.float()).to(x.dtype)

    def norm_of_heads(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if self.options.across_heads:
            return self.norm(x.flatten(-2), weight).reshape(x.shape)
        return self.norm(x, weight)

    def rotated(self, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        partner, c, s = _turns(self.options, y.shape[-1], cos.cpu().float(), sin.cpu().float())
        on_cpu = y.cpu().float()
        a, b = on_cpu[..., : len(partner)] * c, on_cpu[..., partner] * s
        if self.options.rope_rounding != "once":
            a = a.to(y.dtype).float()
        if self.options.rope_rounding == "products":
            b = b.to(y.dtype).float()
        return torch.cat([a + b, on_cpu[..., len(partner) :]], -1).to(y.dtype).to(y.device)

    def expert_sum(self, experts: Tensor, routing_weights: Tensor) -> Tensor:
        """A fused multiply-add for each expert."""
        e, w = experts.cpu().double(), routing_weights.cpu().double()
        total = torch.zeros_like(e[..., 0, :])
        for k in range(e.shape[-2]):
            total = fused_multiply_add(w[..., k, None], e[..., k, :], total)
        return total.to(experts.dtype).to(experts.device)


@dataclass(frozen=True)
class Bounds:
    """Intervals. Takes tensors, too: the operands."""

    options: Options
    dtype: torch.dtype  # of the activations
    # Where float32 overflows and float64 does not, so that results may not be the reference's.
    overflows: list[Tensor] = field(default_factory=list)

    def norm(
        self, x: Tensor | Interval, weight: Tensor | None, bias: Tensor | None = None
    ) -> Interval:
        x = _interval(x)
        result = x * self.inverse_rms(x)
        if weight is not None:
            if self.options.casting_mode == "llama":
                result = result.rounded(self.dtype)
            result = result * (Interval.of(weight) + self.options.weight_offset)
        return self.R(result if bias is None else result + Interval.of(bias))

    def inverse_rms(self, x: Interval) -> Interval:
        self.overflows.append(x.overflows_when_squared())
        eps = torch.finfo(torch.float32).eps if self.options.eps is None else self.options.eps
        return x.inverse_rms(eps)

    def add(
        self, a: Tensor | Interval, b: Tensor | Interval, like: Tensor | None = None
    ) -> Interval:
        return self.R(_interval(a) + _interval(b), like)

    def mul(
        self, x: Tensor | Interval, factor: Tensor | Interval, like: Tensor | None = None
    ) -> Interval:
        x, factor = _interval(x), _interval(factor)
        low, high = _fitted(factor.low, x.low), _fitted(factor.high, x.low)
        return self.R(x * Interval(low, high), like)

    def times(self, x: Tensor | Interval, factor: str, like: Tensor | None = None) -> Interval:
        product = _interval(x) * Interval.of_number(getattr(self.options, factor))
        return self.R(product, like)

    def activated(self, x: Tensor | Interval) -> Interval:
        return self.activated_as(self.options.activation, x)

    def activated_gate(self, gate: Tensor) -> Interval:
        return self.activated_as(self.options.gate_activation, gate)

    def activated_as(
        self, activation: Activation | GateActivation, t: Tensor | Interval
    ) -> Interval:
        result = self.activation(activation, _interval(t))
        rounds = self.options.round_intermediates and isinstance(t, Tensor)  # an operand
        return result.rounded(t.dtype) if rounds else result

    def activation(self, activation: Activation | GateActivation, s: Interval) -> Interval:
        argument = s
        if activation == "none":
            return s
        if activation == "tanh":
            return s.tanh()
        if activation == "gelu_tanh":  # (1 + tanh(u)) / 2 = sigmoid(2 u)
            twice = [2 * (2 / torch.pi) ** 0.5 * (t + 0.044715 * t**3) for t in (s.low, s.high)]
            argument = Interval(*twice).widened(GELU_ARGUMENT)
        numerator = Interval.of(torch.ones(())) if activation == "sigmoid" else s
        return numerator / (argument.exp_of_negative() + 1.0)

    def modulated(
        self, x: Interval, scale: Tensor | None, shift: Tensor | None, offset_name: str
    ) -> Interval:
        if scale is not None:
            x = self.scaled(x, scale, getattr(self.options, offset_name))
        return self.R(x if shift is None else x + Interval.of(_fitted(shift, x.low)))

    def scaled(self, x: Interval, scale: Tensor, offset: float) -> Interval:
        s = Interval.of(_fitted(scale, x.low))
        match self.options.modulation:
            case "steps":
                factor = s + offset
                if self.options.round_intermediates:
                    factor = factor.rounded(scale.dtype)
                return self.R(x * factor)
            case "addcmul":
                return self.R(x * Interval.of(torch.tensor([offset])) + x * s)
            case _:
                return x * (s + offset)

    def gated_norm(
        self, x: Tensor, gate: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Interval:
        x, gate, weight, bias = in_groups(self.options.group_size, x, gate, weight, bias)
        activated = self.activation(self.options.activation, Interval.of(gate))
        # Infinity times a gate that float32 alone takes for zero is NaN, and so is its row.
        vanishes = (activated.low != activated.high) & (activated.low * activated.high == 0)
        lost = vanishes & x.cpu().isinf()
        if self.options.norm_before_gate:
            result = self.norm(x, weight, bias) * activated
        else:
            product = Interval.of(x) * activated
            result = self.norm(product, weight, bias)
            # It may overflow beside an element that is infinite anyway.
            lost |= product.low.isfinite() != product.high.isfinite()
        lost = lost.any(dim=-1, keepdim=True)
        self.overflows.append((self.overflows.pop() | lost).expand(x.shape).flatten(-2))
        return self.R(Interval(result.low.flatten(-2), result.high.flatten(-2)))

    def norm_of_channels(self, x: Tensor, gamma: Tensor | None, bias: Tensor | None) -> Interval:
        o = self.options
        eps = torch.finfo(torch.float32).eps if o.eps is None else o.eps
        if o.form == "rms":
            steps = self.norm(x, gamma)  # rounds nothing: the op has no round_intermediates
        else:
            exact = Interval.of(x)
            self.overflows.append(exact.overflows_when_squared())
            steps = exact / self.divisor(exact, eps)
            if o.form != "rms_steps":
                steps = steps.rounded(self.dtype) * Interval.of_number(x.shape[-1] ** 0.5)
            if gamma is not None:
                steps = steps.rounded(self.dtype) * (Interval.of(gamma) + o.weight_offset)
        if bias is not None:
            steps = steps.rounded(self.dtype) + Interval.of(bias)
        return self.activation("silu", steps.rounded(self.dtype)) if o.silu else steps

    def divisor(self, x: Interval, eps: float) -> Interval:
        """Of the forms that divide."""
        stored_eps = torch.tensor(eps).to(self.dtype).item() or eps
        match self.options.form:
            case "rms_steps":
                mean = x.mean_square(rounded=self.dtype).rounded(self.dtype)
                mean = (mean + Interval.of_number(stored_eps)).rounded(self.dtype)
                return mean.sqrt().rounded(self.dtype)
            case "normalize":
                return x.norm().rounded(self.dtype).at_least(stored_eps)
            case _:
                return x.norm().at_least(eps)

    def norm_of_heads(self, x: Tensor, weight: Tensor | None) -> Interval:
        if not self.options.across_heads:
            return self.norm(x, weight)
        result = self.norm(x.flatten(-2), weight)
        self.overflows.append(self.overflows.pop().unsqueeze(-2))
        return Interval(result.low.reshape(x.shape), result.high.reshape(x.shape))

    def rotated(self, y: Interval, cos: Tensor, sin: Tensor) -> Interval:
        partner, c, s = _turns(self.options, y.low.shape[-1], cos.cpu(), sin.cpu())
        a, b = y[..., : len(partner)] * Interval.of(c), y[..., partner] * Interval.of(s)
        if self.options.rope_rounding != "once":
            a = self.R(a)
        if self.options.rope_rounding == "products":
            b = self.R(b)
        return Interval.cat([self.R(a + b), y[..., len(partner) :]])

    def expert_sum(self, experts: Tensor, routing_weights: Tensor) -> Interval:
        e, w = _interval(experts).low, _interval(routing_weights).low
        total = Interval.of(torch.zeros_like(e[..., 0, :]))
        for k in range(e.shape[-2]):
            total = total + Interval.of(w[..., k, None]) * Interval.of(e[..., k, :])
        return self.R(total)

    def R(self, x: Interval, like: Tensor | None = None) -> Interval:
        dtype = self.dtype if like is None else like.dtype
        return x.rounded(dtype) if self.options.round_intermediates else x


def _interval(x: Tensor | Interval) -> Interval:
    return x if isinstance(x, Interval) else Interval.of(x)
