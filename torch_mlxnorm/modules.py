"""The operators as modules."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from operator import index

import torch
import torch.fx
from torch import Tensor, nn

from torch_mlxnorm.functional import (
    CastingMode,
    ChannelForm,
    add_rms_norm,
    channel_rms_norm,
    rms_norm,
)


@torch.fx.wrap  # a call in graphs of torch.fx, which cannot follow an if
def _check_size(x: Tensor, dims: list[int]) -> None:
    if torch.jit.is_tracing() or (x.dim() == 0 and len(dims) == 1):
        return
    if list(x.shape[-len(dims) :]) != dims:
        raise RuntimeError(
            f"RMSNorm: x must have last dimensions of {list(dims)} (normalized_shape), "
            f"got shape {list(x.shape)}"
        )


@torch.fx.wrap
def _check_channels(x: Tensor, channels: int) -> None:
    if not torch.jit.is_tracing() and x.dim() >= 2 and x.shape[1] != channels:
        raise RuntimeError(
            f"ChannelRMSNorm: x must have a dimension 1 of {channels} (channels), "
            f"got shape {list(x.shape)}"
        )


def _is_none(module: nn.Module, residual: Tensor | None) -> bool:
    if not isinstance(residual, torch.fx.Proxy):
        return residual is None
    # torch.fx gives what it traces a stand-in for each argument, also for this one's default.
    return residual.tracer.root is module


class RMSNorm(nn.Module):
    r""":func:`torch_mlxnorm.rms_norm` with a weight of its own, in place of
    :class:`torch.nn.RMSNorm`, whose state dict it loads.

    Args:
        normalized_shape: sizes of the last dimensions, which are normalized together, as an
            integer or a sequence. Several are one row: a view where they lie so, else a copy.
        eps: added to the mean of the squares; ``None`` means ``torch.finfo(torch.float32).eps``,
            which :class:`torch.nn.RMSNorm` uses for float32, float16 and bfloat16 alike.
        elementwise_affine: whether there is a weight, initialized so that
            ``weight + weight_offset`` is 1.
        device, dtype: of the weight.
        weight_offset, casting_mode: see :func:`torch_mlxnorm.rms_norm`.

    Called with ``x``, it gives ``N(x)``; with ``x, residual`` the pair ``(N(s), s)`` of the sum
    ``s = x + residual``, both rounded as by :func:`torch_mlxnorm.add_rms_norm` with
    ``round_intermediates``: the bits of the sum and then the norm.

    Shape: ``[..., *normalized_shape]`` to the same, contiguous.

    Raises:
        ValueError: ``normalized_shape`` has no dimension.
        RuntimeError: at a call, the last dimensions have other sizes, or residual another shape or
            device than x, or a residual under :func:`torch.jit.script`.

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
        if len(normalized_shape) == 0:
            raise ValueError("RMSNorm: normalized_shape must have at least 1 dimension, got ()")
        # TorchScript would not understand all of these annotations in the class.
        self.normalized_shape: tuple[int, ...] = tuple(index(size) for size in normalized_shape)
        self._sizes = list(self.normalized_shape)  # as TorchScript takes it
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

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if torch.jit.is_scripting():  # TorchScript has one type for a result
            if residual is not None:
                raise RuntimeError("RMSNorm: TorchScript takes no residual")
        else:
            # Past nn.Module's search for a parameter and the calls below: a third of the time.
            weight = self._parameters.get("weight")
            if residual is None and weight is not None and len(self._sizes) == 1:
                return rms_norm(
                    x,
                    weight,
                    self.eps,
                    weight_offset=self.weight_offset,
                    casting_mode=self.casting_mode,
                )
            if not _is_none(self, residual):
                return self._add(x, residual)
        several = len(self._sizes) > 1
        weight = self.weight
        if several or weight is None:  # of one dimension the operator compares a weight's
            _check_size(x, self._sizes)
        if not several:
            return self._norm(x, weight)
        if weight is not None:
            weight = weight.flatten()
        return self._norm(x.flatten(-len(self._sizes)), weight).view(x.shape)

    @torch.jit.unused
    def _add(self, x: Tensor, residual: Tensor) -> Tensor:
        dims = self.normalized_shape
        _check_size(x, self._sizes)
        if x.shape != residual.shape:
            raise RuntimeError(
                f"RMSNorm: residual must have x's shape {list(x.shape)}, got {list(residual.shape)}"
            )
        weight = None if self.weight is None else self.weight.flatten()
        out, total = add_rms_norm(
            x.flatten(-len(dims)),
            residual.flatten(-len(dims)),
            weight,
            self.eps,
            weight_offset=self.weight_offset,
            casting_mode=self.casting_mode,
            round_intermediates=True,
        )
        return out.view(x.shape), total.view(x.shape)  # type: ignore[return-value]

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if torch.jit.is_scripting():  # it compiles the operator, but not the function
            return torch.ops.mlxnorm.rms_norm(
                x,
                weight,
                self.eps,
                weight_offset=self.weight_offset,
                casting_mode=self.casting_mode,
            )
        else:  # TorchScript leaves this branch out, but not what would follow an if alone
            return rms_norm(
                x,
                weight,
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


class ChannelRMSNorm(nn.Module):
    r""":func:`torch_mlxnorm.channel_rms_norm` with gamma and bias of its own, in place of the norms
    of VAEs: ``WanRMS_norm`` and its likes, whose state dicts it loads.

    Args:
        channels: how many there are.
        dims: dimensions after those, of which the parameters have one each, of size 1: 2 of images,
            3 of videos.
        bias: whether there is one.
        affine: whether there is a gamma; without it there is no bias.
        eps, form, silu, weight_offset, casting_mode: see :func:`torch_mlxnorm.channel_rms_norm`.
        device, dtype: of the parameters.

    Shape: ``[N, channels, ...]`` to the same, in the same memory format.

    Raises:
        ValueError: there is a bias but no gamma.
        RuntimeError: at a call, dimension 1 has another size.

    Works under :func:`torch.compile`, :func:`torch.export.export`, :func:`torch.fx.symbolic_trace`
    and :func:`torch.jit.trace`, with equal bits. Inference only, as :class:`RMSNorm`.
    """

    def __init__(
        self,
        channels: int,
        dims: int = 3,
        bias: bool = False,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float | None = 1e-12,
        form: ChannelForm = "normalize",
        silu: bool = False,
        weight_offset: float = 0.0,
        casting_mode: CastingMode = "gemma",
    ) -> None:
        super().__init__()
        if bias and not affine:
            raise ValueError("ChannelRMSNorm: bias needs gamma (affine=True)")
        self.channels = index(channels)
        self.eps = eps
        self.form: ChannelForm = form
        self.silu = silu
        self.weight_offset = float(weight_offset)
        self.casting_mode: CastingMode = casting_mode
        shape = (self.channels, *[1] * dims)

        def parameter(value: float) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, value, device=device, dtype=dtype))

        self.register_parameter("gamma", parameter(1.0 - weight_offset) if affine else None)
        self.register_parameter("bias", parameter(0.0) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.gamma is None:  # else the operator compares gamma's
            _check_channels(x, self.channels)
        return channel_rms_norm(
            x,
            self.gamma,
            self.bias,
            self.eps,
            form=self.form,
            silu=self.silu,
            weight_offset=self.weight_offset,
            casting_mode=self.casting_mode,
        )

    def extra_repr(self) -> str:
        text = f"{self.channels}, bias={self.bias is not None}, affine={self.gamma is not None}"
        text += f", eps={self.eps}, form={self.form!r}, silu={self.silu}"
        return f"{text}, weight_offset={self.weight_offset}, casting_mode={self.casting_mode!r}"
