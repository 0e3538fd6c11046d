"""What a norm module of a model may compute, as calls of the operators."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_mlxnorm.functional import channel_rms_norm, gated_rms_norm, rms_norm

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Form:
    """An operator with options; `prepare` is what is done to weight or x before it."""

    op: str
    options: tuple[tuple[str, Any], ...] = ()
    prepare: str = ""

    @property
    def has_gate(self) -> bool:
        return self.op == "gated_rms_norm"

    @property
    def has_channels(self) -> bool:
        return self.op == "channel_rms_norm"

    def __str__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options]
        return f"{self.op}({', '.join(options)})" + (f" of {self.prepare}" if self.prepare else "")

    @property
    def launches(self) -> int:
        return 1 + {"": 0, "(1 + weight)": 1, "x * (1 + weight)": 2}[self.prepare]

    def forward(self, weight: str | None, eps: float | None) -> Forward:
        """Of a module whose parameter has that name. The module is asked for it in each call: it
        may be another tensor by then, on another device."""
        options = dict(self.options)
        if self.has_gate:

            def gated(module: nn.Module, x: Tensor, gate: Tensor) -> Tensor:
                w = None if weight is None else getattr(module, weight)
                return gated_rms_norm(x, gate, w, eps, **options)

            return gated
        if self.has_channels:

            def over_channels(module: nn.Module, x: Tensor) -> Tensor:
                gamma = None if weight is None else getattr(module, weight)
                return channel_rms_norm(x, gamma, None, eps, **options)

            return over_channels
        if weight is None:
            return lambda module, x: _rms_norm_where_it_lies(x, eps, **options)
        if self.prepare == "(1 + weight)":
            return lambda module, x: rms_norm(x, 1.0 + getattr(module, weight), eps, **options)
        if self.prepare == "x * (1 + weight)":
            return lambda module, x: rms_norm(x * (1.0 + getattr(module, weight)), None, eps)
        if weight == "weight":  # nearly all: an attribute is found faster than by getattr
            return lambda module, x: rms_norm(x, module.weight, eps, **options)
        return lambda module, x: rms_norm(x, getattr(module, weight), eps, **options)


def _rms_norm_where_it_lies(x: Tensor, eps: float | None, **options: Any) -> Tensor:
    """Channels that a model has moved last, to be normalized there, are not copied."""
    if x.dim() > 2 and x.stride(-1) != 1:
        channels = x.movedim(-1, 1)
        return channel_rms_norm(channels, None, None, eps, form="rms", **options).movedim(1, -1)
    return rms_norm(x, None, eps, **options)


def _form(op: str, prepare: str = "", **options: Any) -> Form:
    return Form(op, tuple(options.items()), prepare)


GEMMA = _form("rms_norm")
LLAMA = _form("rms_norm", casting_mode="llama")
OFFSET = _form("rms_norm", weight_offset=1.0)


def forms_of_norms(has_weight: bool) -> Iterator[Form]:
    """Of a module that is called with x, the likeliest first."""
    if not has_weight:
        yield GEMMA
        return
    yield from (LLAMA, GEMMA, OFFSET)
    yield _form("rms_norm", weight_offset=1.0, casting_mode="llama")
    yield _form("rms_norm", "(1 + weight)")
    yield _form("rms_norm", "(1 + weight)", casting_mode="llama")
    yield _form("rms_norm", "x * (1 + weight)")


def forms_of_gated_norms(groups: set[int]) -> Iterator[Form]:
    """Of a module that is called with x and a gate."""
    roundings: list[dict[str, Any]] = [{"round_intermediates": True}, {}]
    for after, activation, casting_mode, rounding, group_size in itertools.product(
        (True, False), ("silu", "sigmoid"), ("llama", "gemma"), roundings, sorted(groups | {0})
    ):
        options: dict[str, Any] = {}
        options |= {"norm_before_gate": True} if after else {}
        options |= {"activation": activation} if activation != "silu" else {}
        options |= {"casting_mode": casting_mode} if casting_mode != "gemma" else {}
        options |= {"group_size": group_size} if group_size else {}
        yield _form("gated_rms_norm", **options, **rounding)


def forms_of_channel_norms(has_weight: bool) -> Iterator[Form]:
    """Of a module that is called with x and normalizes its dimension 1."""
    for form in ("normalize_float32", "normalize", "rms_steps", "rms"):
        yield _form("channel_rms_norm", form=form)
    if has_weight:
        yield _form("channel_rms_norm", form="rms", casting_mode="llama")


def numbers_of(module: nn.Module) -> Iterator[tuple[str, float]]:
    """Attributes that are finite numbers."""
    for name, value in vars(module).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and math.isfinite(value):
            yield name, value


def eps_of(module: nn.Module, form: Form) -> list[float]:
    """What may be its eps: numbers that are small, those that are called so first."""
    found = {value: "eps" in name for name, value in numbers_of(module) if 0.0 < value <= 1e-2}
    ordered = sorted(found, key=lambda value: not found[value])
    if str(dict(form.options).get("form", "")).startswith("normalize"):
        return ordered or [1e-12]  # of torch.nn.functional.normalize
    return ordered or [1e-6, 1e-5, torch.finfo(torch.float32).eps]


def groups_of(module: nn.Module, dim: int) -> set[int]:
    """What may be its group size: a number of elements, or of groups."""
    sizes = {int(value) for _, value in numbers_of(module) if value == int(value) and value > 1}
    return {size for size in sizes if dim % size == 0 and size < dim} | {
        dim // size for size in sizes if dim % size == 0 and size < dim
    }


# Forms that are tried first. Nothing depends on it but how long probing takes.
KNOWN = {
    name: form
    for form, names in {
        GEMMA: "Gemma4RMSNorm Gemma3nRMSNorm GptOssRMSNorm Olmo2RMSNorm Olmo3RMSNorm",
        OFFSET: "GemmaRMSNorm Gemma2RMSNorm Gemma3RMSNorm Qwen3NextRMSNorm Qwen3_5RMSNorm",
    }.items()
    for name in names.split()
}
