"""What the forward of a fused layer calls: an operator in the place of several modules.

Each is made for the eps, options and dtypes that its norms were found to have. Where tensors are
not as they have to be (a residual stream of another dtype, say), the modules run one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torch_mlxnorm as mlxnorm

from ._probe import Dtypes

NEXT = "_mlxnorm_next"  # of a layer: the norm that its result goes to
OPTIONS = "_mlxnorm_options"  # of a norm: an Options
READY = "_mlxnorm_ready"  # of a norm: an input with its version, and the norm of that


@dataclass(frozen=True)
class Options:
    """Of norms that one operator has."""

    eps: float | None
    options: tuple[tuple[str, Any], ...]
    dtypes: frozenset[Dtypes]

    @property
    def keywords(self) -> dict[str, Any]:
        return dict(self.options) | {"round_intermediates": True}

    def fit(self, x: Tensor, residual: Tensor, *norms: nn.Module) -> bool:
        if x.dtype is not residual.dtype or x.shape != residual.shape:
            return False
        return all(self.has(norm, x) for norm in norms)

    def has(self, norm: nn.Module, x: Tensor) -> bool:
        """A weight that is offloaded is elsewhere until the norm itself is called."""
        w = weight_of(norm)
        if w is None:
            return (x.dtype, x.dtype) in self.dtypes
        return (x.dtype, w.dtype) in self.dtypes and w.device == x.device


def weight_of(norm: nn.Module) -> Tensor | None:
    return norm._parameters.get("weight")


Fused = Callable[..., Any]


def one_by_one(norm: nn.Module, x: Tensor, residual: Tensor, scale: Tensor | None) -> Tensor:
    total = residual + norm(x)
    return total if scale is None else total * scale


def add_norm(of: Options, alpha: float = 1.0) -> Fused:
    keywords = of.keywords | ({"alpha": alpha} if alpha != 1.0 else {})

    def add_rms_norm(norm: nn.Module, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        if of.fit(x, residual, norm):
            return mlxnorm.add_rms_norm(x, residual, weight_of(norm), of.eps, **keywords)
        total = residual + (x if alpha == 1.0 else x * alpha)
        return norm(total), total

    return add_rms_norm


def norm_add(of: Options) -> Fused:
    keywords = of.keywords

    def rms_norm_add(
        norm: nn.Module, x: Tensor, residual: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        if of.fit(x, residual, norm):
            weight = weight_of(norm)
            return mlxnorm.rms_norm_add(x, residual, weight, of.eps, scale=scale, **keywords)
        return one_by_one(norm, x, residual, scale)

    return rms_norm_add


def norm_add_norm(of: Options) -> Fused:
    keywords = of.keywords

    def rms_norm_add_rms_norm(
        norm: nn.Module,
        following: nn.Module,
        x: Tensor,
        residual: Tensor,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if of.fit(x, residual, norm, following):
            weights = weight_of(norm), weight_of(following)
            return mlxnorm.rms_norm_add_rms_norm(
                x, residual, *weights, of.eps, scale=scale, **keywords
            )
        total = one_by_one(norm, x, residual, scale)
        return total, following(total)

    return rms_norm_add_rms_norm


def norm_add_three_norms(of: Options) -> Fused:
    keywords = of.keywords

    def fused_post_attn_triple_norm(
        norm: nn.Module, a: nn.Module, b: nn.Module, c: nn.Module, x: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if of.fit(x, residual, norm, a, b, c):
            weights = map(weight_of, (norm, a, b, c))
            return mlxnorm.fused_post_attn_triple_norm(residual, x, *weights, of.eps, **keywords)
        total = one_by_one(norm, x, residual, None)
        return total, a(total), b(total), c(total)

    return fused_post_attn_triple_norm


def end_of_layer(of: Options) -> Fused:
    keywords = of.keywords

    def fused_post_ff_norm2_endlayer(
        norm2: nn.Module,
        norm3: nn.Module,
        x: Tensor,
        branch: Tensor,
        residual: Tensor,
        scalar: Tensor,
    ) -> Tensor:
        if of.fit(x, residual, norm2, norm3) and of.fit(branch, residual):
            weights = weight_of(norm2), weight_of(norm3)
            return mlxnorm.fused_post_ff_norm2_endlayer(
                branch, x, residual, *weights, scalar, of.eps, **keywords
            )[1]
        return (residual + norm3(branch + norm2(x))) * scalar

    return fused_post_ff_norm2_endlayer


def end_of_moe_layer(of: Options) -> Fused:
    keywords = of.keywords

    def fused_moe_wsum_post_ff_norm2_endlayer(
        experts: nn.Module,
        norm2: nn.Module,
        norm3: nn.Module,
        x: Tensor,
        indices: Tensor,
        weights: Tensor,
        branch: Tensor,
        residual: Tensor,
        scalar: Tensor,
    ) -> Tensor:
        if not of.fit(branch, residual, norm2, norm3) or x.dtype is not residual.dtype:
            total = experts(x, indices, weights).reshape(residual.shape)
            return (residual + norm3(branch + norm2(total))) * scalar
        # As if each expert of a token were a token's only one, with weight 1: their outputs.
        count = indices.shape[-1]
        outputs = experts(
            x.repeat_interleave(count, dim=0),
            indices.reshape(-1, 1),
            weights.new_ones(indices.numel(), 1),
        )
        rows = residual.shape[:-1]
        return mlxnorm.fused_moe_wsum_post_ff_norm2_endlayer(
            outputs.view(*rows, count, outputs.shape[-1]),
            weights.view(*rows, count),
            branch,
            residual,
            *(weight_of(norm2), weight_of(norm3)),
            scalar,
            of.eps,
            **keywords,
        )[1]

    return fused_moe_wsum_post_ff_norm2_endlayer


# ---- the last sum of a layer, and the norm that the next one begins with ------------------------


def following_norm(layer: nn.Module, total: Tensor) -> nn.Module | None:
    """If it may be worked out now: that another one changes the sum in between would be seen."""
    following = vars(layer).get(NEXT)
    if following is None or total.is_inference() or following._forward_pre_hooks:
        return None
    weight = weight_of(following)
    return following if weight is None or weight.device == total.device else None


def keep_ready(following: nn.Module, total: Tensor, normed: Tensor) -> Tensor:
    vars(following)[READY] = (total, total._version, normed)
    return total


def take_ready(norm: nn.Module, x: Tensor) -> Tensor | None:
    """What was worked out for this very tensor, if it still has those values."""
    ready = vars(norm).pop(READY, None)
    if ready is not None and ready[0] is x and ready[1] == x._version:
        return ready[2]
    return None


def last_add(of: Options, alpha: float = 1.0) -> Fused:
    fused = add_norm(of, alpha)

    def add_and_next_rms_norm(layer: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
        following = following_norm(layer, x)
        if following is None:
            return residual + (x if alpha == 1.0 else x * alpha)
        normed, total = fused(following, x, residual)
        return keep_ready(following, total, normed)

    return add_and_next_rms_norm


def last_norm_add(of: Options) -> Fused:
    without, fused = norm_add(of), norm_add_norm(of)

    def rms_norm_add_and_next_rms_norm(
        layer: nn.Module, norm: nn.Module, x: Tensor, residual: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        following = following_norm(layer, x)
        if following is None:
            return without(norm, x, residual, scale)
        total, normed = fused(norm, following, x, residual, scale)
        return keep_ready(following, total, normed)

    return rms_norm_add_and_next_rms_norm


def is_off() -> bool:
    """Are gradients, a compiler or autocast at work, for which the model's own code is right?"""
    return (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._is_any_autocast_enabled()
    )
