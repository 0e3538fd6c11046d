"""The operators as modules."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from operator import index

import torch
import torch.fx
from torch import Tensor, nn

from torch_mlxnorm.functional import CastingMode, rms_norm


@torch.fx.wrap  # a call in graphs of torch.fx, which cannot follow an if
def _check_size(x: Tensor, dim: int) -> None:
    if x.dim() > 0 and not torch.jit.is_tracing() and x.size(-1) != dim:
        raise RuntimeError(
            f"RMSNorm: x must have a last dimension of {dim} (normalized_shape), "
            f"got shape {list(x.shape)}"
        )


class RMSNorm(nn.Module):
    r""":func:`torch_mlxnorm.rms_norm` with a weight of its own, in place of
    :class:`torch.nn.RMSNorm`, whose state dict it loads.

    Args:
        normalized_shape: size of the last dimension, as an integer or a sequence of one. Only the
            last dimension is normalized.
        eps: added to the mean of the squares; ``None`` means ``torch.finfo(torch.float32).eps``,
            which :class:`torch.nn.RMSNorm` uses for float32, float16 and bfloat16 alike.
        elementwise_affine: whether there is a weight, initialized so that
            ``weight + weight_offset`` is 1.
        device, dtype: of the weight.
        weight_offset, casting_mode: see :func:`torch_mlxnorm.rms_norm`.

    Shape: ``[..., dim]`` to ``[..., dim]``, contiguous.

    Raises:
        ValueError: ``normalized_shape`` has more than one dimension.
        RuntimeError: at a call, the last dimension has another size.

    Works under :func:`torch.compile`, :func:`torch.export.export`, :func:`torch.fx.symbolic_trace`,
    :func:`torch.jit.script` and :func:`torch.jit.trace`, with equal bits. Inference only: call it
    under :func:`torch.inference_mode` or :func:`torch.no_grad`; a backward through it raises
    ``NotImplementedError``.
    """

    __constants__ = [
        "normalized_shape",
        "eps",
        "elementwise_affine",
        "weight_offset",
        "casting_mode",
    ]

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_offset: float = 0.0,
        casting_mode: CastingMode = "gemma",
    ) -> None:
        super().__init__()
        if isinstance(normalized_shape, Integral):
            normalized_shape = (normalized_shape,)
        if len(normalized_shape) != 1:
            raise ValueError(
                f"RMSNorm: normalized_shape must have 1 dimension, got {tuple(normalized_shape)}"
            )
        # TorchScript would not understand all of these annotations in the class.
        self.normalized_shape: tuple[int] = (index(normalized_shape[0]),)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight_offset = float(weight_offset)
        self.casting_mode: CastingMode = casting_mode
        self.weight: nn.Parameter | None
        if elementwise_affine:
            self.weight = nn.Parameter(
                torch.empty(self.normalized_shape, device=device, dtype=dtype)
            )
        else:
            self.register_parameter("weight", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight so that it has no effect."""
        if self.weight is not None:
            nn.init.constant_(self.weight, 1.0 - self.weight_offset)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:  # with one, the operator compares
            _check_size(x, self.normalized_shape[0])
        if torch.jit.is_scripting():  # it compiles the operator, but not the function
            return torch.ops.mlxnorm.rms_norm(
                x,
                self.weight,
                self.eps,
                weight_offset=self.weight_offset,
                casting_mode=self.casting_mode,
            )
        else:  # TorchScript leaves this branch out, but not what would follow an if alone
            return rms_norm(
                x,
                self.weight,
                self.eps,
                weight_offset=self.weight_offset,
                casting_mode=self.casting_mode,
            )

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, "
            f"weight_offset={self.weight_offset}, casting_mode={self.casting_mode!r}"
        )
