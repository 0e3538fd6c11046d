"""Prebaked dispatch."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import torch

from torch_mlxnorm import _C
from torch_mlxnorm.functional import CastingMode

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "mlxnorm::RmsNormRecord"


class RmsNormRecord(_C.RmsNormRecord):
    """:func:`torch_mlxnorm.rms_norm` with everything but the tensors fixed::

        record = RmsNormRecord(torch.bfloat16, 1, 2816, eps=1e-6, device="mps")
        record(x, weight, out)    # out = N(x, weight)

    A call looks up no pipeline, chooses no kernel, computes no geometry and passes by PyTorch's
    dispatcher: for the decode loop of an inference engine, which runs the same norms for every
    token. The results are those of :func:`torch_mlxnorm.rms_norm` to the bit.

    Args:
        dtype: of x and out: float32, float16 or bfloat16.
        rows: in x, all leading dimensions together; at least 1.
        dim: size of the last dimension; at least 1.
        eps, weight_offset, casting_mode: see :func:`torch_mlxnorm.rms_norm`.
        has_weight: whether calls bring a weight.
        weight_dtype: of the weight: float32, float16 or bfloat16; ``None`` means ``dtype``.
        device: of all tensors; ``None`` means ``torch.get_default_device()``.

    Calls take ``x`` and ``out``, contiguous tensors of ``rows * dim`` elements whose last dimension
    is ``dim``, and ``weight``, contiguous, ``[dim]``, or ``None``; out may be x itself. They return
    nothing. Tensors at any storage offset will do. Eager mode only: ``torch.compile`` leaves it out
    of its graphs, and with ``fullgraph=True`` says to use :func:`torch_mlxnorm.rms_norm`.

    Copies and pickles are baked again from the arguments, which ``repr`` shows.

    Raises:
        ValueError: ``rows``, ``dim`` or ``casting_mode`` is out of range; no tensor has that many
            elements.
        TypeError: a dtype is not one of the above, or at a call not what was baked; ``rows`` or
            ``dim`` is no integer.
        NotImplementedError: there are no kernels for the device.
        RuntimeError: a call brings a shape, device, stride or weight that was not baked, a tensor
            subclass, an overlapping ``out``, or would lose a gradient.

    Source: ported from ``build_rms_norm_decode_record`` of mlx-native 0.9.0, ``rms_norm.rs``.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        rows: int,
        dim: int,
        *,
        eps: float | None = 1e-6,
        has_weight: bool = True,
        weight_dtype: torch.dtype | None = None,
        weight_offset: float = 0.0,
        casting_mode: CastingMode = "gemma",
        device: torch.device | str | None = None,
    ) -> None:
        if "_baked" in vars(self):
            raise RuntimeError(f"{_NAME}: it is baked already; make another")
        weight_dtype = dtype if weight_dtype is None else weight_dtype
        for name, given in (("dtype", dtype), ("weight_dtype", weight_dtype)):
            if not isinstance(given, torch.dtype):
                raise TypeError(f"{_NAME}: {name} must be a torch.dtype, got {given!r}")
        rows, dim = _size("rows", rows), _size("dim", dim)
        like = torch.empty(0, dtype=torch.float32, device=device)
        super().__init__(
            like,
            dtype,
            rows,
            dim,
            weight_dtype if has_weight else None,
            eps,
            weight_offset,
            casting_mode,
        )
        self._baked = {
            "dtype": dtype,
            "rows": rows,
            "dim": dim,
            "eps": eps,
            "has_weight": has_weight,
            "weight_dtype": weight_dtype,
            "weight_offset": weight_offset,
            "casting_mode": casting_mode,
            "device": like.device,
        }

    def __call__(self, x: Tensor, weight: Tensor | None, out: Tensor) -> None:
        _call(self, x, weight, out)

    # torch.compile, which cannot look into a record, leaves it out of its graphs and says so, with
    # this reason, where fullgraph=True forbids that: as for torch.compiler.disable(reason=…), but
    # without its wrapper, which takes as long as the call.
    __call__._torchdynamo_disable = True  # type: ignore[attr-defined]
    __call__._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
        f"{_NAME} is for eager mode; use torch_mlxnorm.rms_norm under torch.compile"
    )

    def __repr__(self) -> str:
        arguments = (f"{name}={value!r}" for name, value in vars(self).get("_baked", {}).items())
        return f"{type(self).__name__}({', '.join(arguments)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebaked, (type(self), self._baked), self.__dict__


_call = _C.RmsNormRecord.__call__


def _size(name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{_NAME}: {name} must be an int, got {type(value).__name__}")
    size = index(value)
    if size.bit_length() > 63:
        raise ValueError(f"{_NAME}: {name} must fit in 64 bits, got {size}")
    return size


def _rebaked(kind: type[RmsNormRecord], baked: dict[str, Any]) -> RmsNormRecord:
    """Of what pickle and copy know of a record."""
    record = kind.__new__(kind)
    RmsNormRecord.__init__(record, **baked)
    return record
