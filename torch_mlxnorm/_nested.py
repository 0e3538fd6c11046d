"""Jagged nested tensors: an operator runs on the values, whose rows it need not tell apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor

from torch_mlxnorm._roles import (
    OPS,
    bound,
    has_channels,
    name_of,
    qualified,
    rows_of,
    tensor_arguments,
)


def _like(x: NestedTensor, values: Tensor) -> NestedTensor:
    """With the raggedness of x."""
    from torch.nested._internal.ops import extract_kwargs  # not before the first nested tensor

    return NestedTensor(values, **extract_kwargs(x))


def _run(
    _cls: type, op: torch._ops.OpOverload, _types: Any, args: Any, kwargs: dict[str, Any] | None
) -> Any:
    given = bound(op, args, kwargs or {})
    tensors = tensor_arguments(given)
    first, x = next(iter(tensors.items()))
    of_channels = has_channels(name_of(op))
    if isinstance(x, NestedTensor) and x._ragged_idx == (1 if of_channels else x.dim() - 1):
        where = "dimension 1" if of_channels else "its last dimension"
        raise RuntimeError(f"mlxnorm::{name_of(op)}: {first} must not be ragged in {where}")
    for name, tensor in tensors.items():
        if isinstance(tensor, NestedTensor):
            if tensor.shape[tensor._ragged_idx] != x.shape[x._ragged_idx]:
                raise RuntimeError(
                    f"mlxnorm::{name_of(op)}: {name} must be as ragged as {first}: nested tensors "
                    "of one call share their offsets"
                )
            given[name] = tensor.values().unsqueeze(0) if of_channels else tensor.values()
        elif not rows_of(op, name, given).broadcasts:
            raise RuntimeError(
                f"mlxnorm::{name_of(op)}: {name} must be nested, as other inputs are"
            )
        elif of_channels:  # values are one batch
            if tensor.dim() == x.dim() and tensor.shape[0] != 1:
                raise RuntimeError(
                    f"mlxnorm::{name_of(op)}: {name} must be one for all of the batch, got shape "
                    f"{list(tensor.shape)}"
                )
        else:
            leading = x.dim() - rows_of(op, first, given).dimensions  # of the results
            rank = leading + rows_of(op, name, given).dimensions
            ones, tail = tensor.shape[: max(tensor.dim() - rank, 0)], tensor.shape[-rank:]
            sizes = (1,) * (rank - len(tail)) + tail
            if ones.numel() != 1 or sizes[0] != 1 or sizes[x._ragged_idx] != 1:
                raise RuntimeError(
                    f"mlxnorm::{name_of(op)}: {name} must be nested, as {first} is, or one for all "
                    f"of the ragged rows, got shape {list(tensor.shape)}"
                )
            given[name] = tensor.reshape(sizes[1:])  # values have no batch
    results = op(**given)
    if of_channels:
        return None if results is None else _like(x, results.squeeze(0))
    if isinstance(results, tuple):
        return tuple(_like(x, values) for values in results)
    return None if results is None else _like(x, results)


def register(library: torch.library.Library) -> None:
    for name in OPS:
        for overload in ("default", "out"):
            qualname = qualified(name, overload)
            library._register_torch_dispatch_rule(qualname, NestedTensor, _run)
