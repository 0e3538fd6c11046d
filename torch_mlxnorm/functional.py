"""The operators as typed Python functions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

CastingMode = Literal["gemma", "llama"]

_rms_norm = torch.ops.mlxnorm.rms_norm.default
_rms_norm_out = torch.ops.mlxnorm.rms_norm.out


def _options(weight_offset: float, casting_mode: CastingMode) -> dict[str, Any]:
    """What differs from the defaults. A keyword argument costs the dispatcher as much time as the
    norm of a short row."""
    if weight_offset == 0.0 and casting_mode == "gemma":
        return {}
    return {"weight_offset": weight_offset, "casting_mode": casting_mode}


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
    casting_mode: CastingMode = "gemma",
    out: Tensor | None = None,
) -> Tensor:
    r"""Root-mean-square normalization over the last dimension.

    .. math::

        y = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \mathrm{eps}}} \cdot
            (\mathrm{weight} + \mathrm{weight\_offset})

    The sum of squares and everything after it is computed in float32, in an order that depends on
    device, dim and dtype alone: a row gives the same bits alone or in a batch.

    Args:
        x: ``[..., dim]``, float32, float16 or bfloat16, ``dim`` at least 1. Any strides: rows
            whose last dimension has stride 1 are read where they are when the leading dimensions
            fold into at most three, other layouts are made contiguous first.
        weight: ``[dim]``, of x's dtype or float32, on x's device. ``None`` means 1, and then
            ``weight_offset`` has no effect.
        eps: added to the mean of the squares.
        weight_offset: added to the weight in float32; 1.0 for checkpoints that store
            ``weight - 1`` (Gemma 1 to 3).
        casting_mode: ``"gemma"`` multiplies by the weight in float32 and rounds once, as
            :func:`torch.nn.functional.rms_norm` does; ``"llama"`` rounds the normalized value to
            x's dtype before it multiplies, as most models of ``transformers`` do. The same in
            float32.
        out: where to write: x's shape, dtype and device, contiguous. It may be x itself.

    Returns:
        A contiguous tensor of x's shape and dtype (``out`` if given). An x without rows gives an
        empty result.

    Raises:
        TypeError: a dtype is not one of the above.
        ValueError: ``casting_mode`` is unknown.
        RuntimeError: x is 0-dimensional or has an empty last dimension, a shape or device does not
            fit, ``out`` is not contiguous, overlaps an input or would lose a gradient.
        NotImplementedError: at backward; the op is for inference only.

    NaN and infinities propagate as in :func:`torch.nn.functional.rms_norm`.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019,
    https://arxiv.org/abs/1910.07467; ported from ``dispatch_rms_norm`` of mlx-native 0.9.0.
    """
    options = _options(weight_offset, casting_mode)
    if out is None:
        return _rms_norm(x, weight, eps, **options)
    _rms_norm_out(x, weight, eps, out=out, **options)
    return out
