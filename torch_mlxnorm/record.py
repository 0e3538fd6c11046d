"""Prebaked dispatch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_mlxnorm import _C
from torch_mlxnorm.functional import CastingMode

if TYPE_CHECKING:
    from torch import Tensor


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
    nothing. Tensors at any storage offset will do. Eager mode only: ``torch.compile`` should see
    :func:`torch_mlxnorm.rms_norm`.

    Raises:
        ValueError: ``rows``, ``dim`` or ``casting_mode`` is out of range.
        TypeError: a dtype is not one of the above, or at a call not what was baked.
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
        eps: float = 1e-6,
        has_weight: bool = True,
        weight_dtype: torch.dtype | None = None,
        weight_offset: float = 0.0,
        casting_mode: CastingMode = "gemma",
        device: torch.device | str | None = None,
    ) -> None:
        weight_dtype = dtype if weight_dtype is None else weight_dtype
        if rows < 1 or dim < 1:
            raise ValueError(
                f"mlxnorm::RmsNormRecord: rows and dim must be at least 1, got {rows} and {dim}"
            )
        for name, value in (("dtype", dtype), ("weight_dtype", weight_dtype)):
            if value not in (torch.float32, torch.float16, torch.bfloat16):
                raise TypeError(
                    f"mlxnorm::RmsNormRecord: {name} must be float32, float16 or bfloat16, "
                    f"got {str(value).removeprefix('torch.')}"
                )
        like = torch.empty(0, dtype=dtype, device=device)
        super().__init__(
            torch.ops.mlxnorm._bake_rms_norm(
                like,
                rows,
                dim,
                weight_dtype if has_weight else None,
                eps,
                weight_offset,
                casting_mode,
            )
        )

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, weight: Tensor | None, out: Tensor) -> None: ...
