"""Each op as it is written without it, twice.

First as models write it: `N` is torch.nn.functional.rms_norm, the rest are operators. Then
(`.singles`) with the package's rms_norm and PyTorch's operators writing to the op's outs: fresh
memory only for what a scale, a gate or angles become, and where every out is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, DIM, ONE, HALVES = "rows dim", "dim", "1", "rows half"  # shapes; Case knows the numbers
Eager = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass
class Composition:
    """`shapes` are those of the op's tensors, in its order. `from_eager` takes N and the tensors,
    `from_singles` N, the tensors and the outs."""

    shapes: dict[str, str | None]
    from_eager: Eager
    from_singles: Callable[..., None] | None = None

    def singles(self, function: Callable[..., None]) -> None:
        self.from_singles = function


COMPOSITIONS: dict[str, Composition] = {}


def composition(**shapes: str | None) -> Callable[[Eager], Composition]:
    def register(eager: Eager) -> Composition:
        return COMPOSITIONS.setdefault(eager.__name__, Composition(shapes, eager))

    return register


@composition(x=ROWS, weight=DIM)
def rms_norm(N, x, weight):
    return N(x, weight)


ACTIVATIONS = {
    "none": lambda scale: scale,
    "silu": F.silu,
    "gelu_tanh": lambda scale: F.gelu(scale, approximate="tanh"),
    "sigmoid": torch.sigmoid,
}


@composition(x=ROWS, weight=DIM, scale=ROWS)
def rms_norm_mul(N, x, weight, scale, activation="none"):
    return N(x, weight) * ACTIVATIONS[activation](scale)


@rms_norm_mul.singles
def _(N, x, weight, scale, out, activation="none"):
    N(x, weight, out)
    torch.mul(out, ACTIVATIONS[activation](scale), out=out)


@composition(x=ROWS, weight=DIM, scale=DIM, shift=DIM)
def rms_norm_modulate(N, x, weight, scale, shift):
    return N(x, weight) * (1 + scale) + shift


@rms_norm_modulate.singles
def _(N, x, weight, scale, shift, out):
    N(x, weight, out)
    torch.mul(out, 1 + scale, out=out)
    torch.add(out, shift, out=out)


@composition(x=ROWS, gate=ROWS, weight=DIM)
def gated_rms_norm(N, x, gate, weight, group_size=0):
    y = (x.float() * F.silu(gate.float())).to(x.dtype)
    if group_size == 0:
        return N(y, weight)
    return N(y.unflatten(-1, (-1, group_size)), None).flatten(-2) * weight


@gated_rms_norm.singles
def _(N, x, gate, weight, out, group_size=0):
    torch.mul(x, F.silu(gate), out=out)
    if group_size == 0:
        N(out, weight, out)
        return
    groups = out.unflatten(-1, (-1, group_size))
    N(groups, None, groups)
    torch.mul(out, weight, out=out)


def pairs_of(y, interleaved):
    return y.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else y.chunk(2, -1)


def rotated(y, cos, sin, interleaved=False):
    y0, y1 = pairs_of(y, interleaved)
    turned = [(y0 * cos - y1 * sin).to(y.dtype), (y1 * cos + y0 * sin).to(y.dtype)]
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)


@composition(x=ROWS, weight=DIM, cos=HALVES, sin=HALVES)
def rms_norm_rope(N, x, weight, cos, sin, interleaved=False, across_heads=False):
    n = N(x.flatten(-2), weight).view_as(x) if across_heads else N(x, weight)
    return rotated(n, cos, sin, interleaved)


@rms_norm_rope.singles
def _(N, x, weight, cos, sin, out, interleaved=False, across_heads=False):
    if across_heads:
        N(x.flatten(-2), weight, out.flatten(-2))
    else:
        N(x, weight, out)
    y0, y1 = pairs_of(out, interleaved)
    turned = y0 * sin
    y0.mul_(cos).sub_(y1 * sin)
    y1.mul_(cos).add_(turned)


@composition(x="1 dim rows", gamma="dim 1", bias=None)
def channel_rms_norm(N, x, gamma, bias, form="normalize", silu=False):
    t = F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma
    return F.silu(t) if silu else t


QUERIES, OTHERS, TABLE = "rows 32 dim", "rows 8 dim", "rows 1 half"


@composition(q=QUERIES, k=OTHERS, q_weight=DIM, k_weight=DIM, cos=TABLE, sin=TABLE)
def qk_norm_rope(N, q, k, q_weight, k_weight, cos, sin):
    return rotated(N(q, q_weight), cos, sin), rotated(N(k, k_weight), cos, sin)


@qk_norm_rope.singles
def _(N, q, k, q_weight, k_weight, cos, sin, q_out, k_out):
    rms_norm_rope.from_singles(N, q, q_weight, cos, sin, q_out)
    rms_norm_rope.from_singles(N, k, k_weight, cos, sin, k_out)


@composition(q=QUERIES, k=OTHERS, v=OTHERS, q_weight=DIM, k_weight=DIM, cos=TABLE, sin=TABLE)
def qkv_norm_rope(N, q, k, v, q_weight, k_weight, cos, sin):
    q, k = rotated(N(q, q_weight), cos, sin), rotated(N(k, k_weight), cos, sin)
    return q, k, N(v, None)


@qkv_norm_rope.singles
def _(N, q, k, v, q_weight, k_weight, cos, sin, q_out, k_out, v_out):
    qk_norm_rope.from_singles(N, q, k, q_weight, k_weight, cos, sin, q_out, k_out)
    N(v, None, v_out)


@composition(x=ROWS, weight_a=DIM, weight_b=DIM, weight_c=DIM)
def rms_norm_triple(N, x, weight_a, weight_b, weight_c):
    return N(x, weight_a), N(x, weight_b), N(x, weight_c)


@rms_norm_triple.singles
def _(N, x, weight_a, weight_b, weight_c, out_a, out_b, out_c):
    N(x, weight_a, out_a)
    N(x, weight_b, out_b)
    N(x, weight_c, out_c)


GATE_ACTIVATIONS = ACTIVATIONS | {"tanh": torch.tanh}


def gated(branch, gate, gate_activation, out=None):
    if gate is None:
        return branch
    return torch.mul(branch, GATE_ACTIVATIONS[gate_activation](gate), out=out)


def modulated(n, scale, shift, out=None):
    if scale is not None:
        n = torch.mul(n, 1 + scale, out=out)
    return n if shift is None else torch.add(n, shift, out=out)


@composition(x=ROWS, residual=ROWS, weight=DIM, gate=None, next_scale=None, next_shift=None)
def add_rms_norm(N, x, residual, weight, gate, next_scale, next_shift, gate_activation="none"):
    residual = gated(x, gate, gate_activation) + residual
    return modulated(N(residual, weight), next_scale, next_shift), residual


@add_rms_norm.singles
def _(
    N, x, residual, weight, gate, next_scale, next_shift, out, residual_out, gate_activation="none"
):  # fmt: skip
    torch.add(gated(x, gate, gate_activation, residual_out), residual, out=residual_out)
    N(residual_out, weight, out)
    modulated(out, next_scale, next_shift, out)


@composition(x=ROWS, residual=ROWS, weight=DIM, scale=ONE, gate=None)
def rms_norm_add(N, x, residual, weight, scale, gate, gate_activation="none"):
    result = residual + gated(N(x, weight), gate, gate_activation)
    if scale is not None:
        result *= scale
    return result


@rms_norm_add.singles
def _(N, x, residual, weight, scale, gate, out, gate_activation="none"):
    N(x, weight, out)
    torch.add(residual, gated(out, gate, gate_activation, out), out=out)
    if scale is not None:
        torch.mul(out, scale, out=out)


@composition(
    x=ROWS, residual=ROWS, weight=DIM, next_weight=DIM,
    scale=None, gate=None, next_scale=None, next_shift=None,
)  # fmt: skip
def rms_norm_add_rms_norm(
    N, x, residual, weight, next_weight, scale, gate, next_scale, next_shift, **options
):
    residual = rms_norm_add.from_eager(N, x, residual, weight, scale, gate, **options)
    return residual, modulated(N(residual, next_weight), next_scale, next_shift)


@rms_norm_add_rms_norm.singles
def _(
    N, x, residual, weight, next_weight, scale, gate, next_scale, next_shift, residual_out, out,
    **options,
):  # fmt: skip
    rms_norm_add.from_singles(N, x, residual, weight, scale, gate, residual_out, **options)
    N(residual_out, next_weight, out)
    modulated(out, next_scale, next_shift, out)


@composition(
    hidden=ROWS, attn_out=ROWS, post_attn_weight=DIM, weight_a=DIM, weight_b=DIM, weight_c=DIM
)
def fused_post_attn_triple_norm(
    N, hidden, attn_out, post_attn_weight, weight_a, weight_b, weight_c
):
    residual = hidden + N(attn_out, post_attn_weight)
    return residual, N(residual, weight_a), N(residual, weight_b), N(residual, weight_c)


@fused_post_attn_triple_norm.singles
def _(
    N, hidden, attn_out, post_attn_weight, weight_a, weight_b, weight_c,
    residual_out, out_a, out_b, out_c,
):  # fmt: skip
    N(attn_out, post_attn_weight, residual_out)
    torch.add(hidden, residual_out, out=residual_out)
    N(residual_out, weight_a, out_a)
    N(residual_out, weight_b, out_b)
    N(residual_out, weight_c, out_c)


@composition(attn_out=ROWS, moe_accum=ROWS, residual=ROWS, w2=DIM, w3=DIM, layer_scalar=ONE)
def fused_post_ff_norm2_endlayer(N, attn_out, moe_accum, residual, w2, w3, layer_scalar):
    mlp_down = attn_out + N(moe_accum, w2)
    hidden = residual + N(mlp_down, w3)
    hidden *= layer_scalar
    return mlp_down, hidden


@fused_post_ff_norm2_endlayer.singles
def _(N, attn_out, moe_accum, residual, w2, w3, layer_scalar, mlp_down, hidden):
    N(moe_accum, w2, mlp_down)
    torch.add(attn_out, mlp_down, out=mlp_down)
    N(mlp_down, w3, hidden)
    torch.add(residual, hidden, out=hidden)
    torch.mul(hidden, layer_scalar, out=hidden)


@composition(
    expert_outputs="rows top_k dim",
    routing_weights="rows top_k",
    attn_out=ROWS,
    residual=ROWS,
    w2=DIM,
    w3=DIM,
    layer_scalar=ONE,
)
def fused_moe_wsum_post_ff_norm2_endlayer(N, expert_outputs, routing_weights, attn_out, *rest):
    moe_accum = (expert_outputs * routing_weights.unsqueeze(-1)).sum(-2)
    return fused_post_ff_norm2_endlayer.from_eager(N, attn_out, moe_accum, *rest)


@fused_moe_wsum_post_ff_norm2_endlayer.singles
def _(N, expert_outputs, routing_weights, attn_out, *rest):
    moe_accum = rest[-1]  # `hidden`, which is written last
    dtype, rows = expert_outputs.dtype, len(expert_outputs)
    if dtype == torch.float32 or (dtype == torch.bfloat16 and rows > 1):  # then bmm is faster
        torch.bmm(routing_weights.unsqueeze(-2), expert_outputs, out=moe_accum.unsqueeze(-2))
    else:
        torch.sum(expert_outputs * routing_weights.unsqueeze(-1), -2, out=moe_accum)
    fused_post_ff_norm2_endlayer.from_singles(N, attn_out, moe_accum, *rest)
