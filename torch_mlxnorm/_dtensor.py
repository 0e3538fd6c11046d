"""DTensor: rows may be sharded, over any of their dimensions; the last dimension is not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_mlxnorm._roles import (
    OPS,
    bound,
    has_channels,
    is_written,
    leading_dimensions,
    name_of,
    rows_of,
    tensor_arguments,
)


def _shardings(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """The placements of results and arguments that go together on one dimension of a mesh."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec
    from torch.distributed.tensor._op_schema import OpSchema

    def shardings(*args: Any, **kwargs: Any) -> list[tuple[list[Any], list[Any]]]:
        given = bound(op, args, kwargs)
        keywords = [name for name, value in kwargs.items() if isinstance(value, DTensorSpec)]
        if keywords and not hasattr(OpSchema, "kwargs_strategy"):
            raise NotImplementedError(
                f"mlxnorm::{name_of(op)}: {keywords[0]} must not be a DTensor with PyTorch "
                f"{torch.__version__}, which shards positional arguments only; later ones do"
            )
        shapes = {n: spec.shape for n, spec in given.items() if isinstance(spec, DTensorSpec)}
        leading = leading_dimensions(op, shapes, given)
        results = len(op._schema.returns)

        def along(dim: int, name: str) -> Any:
            """Of a tensor whose dimension `dim` is sharded, if it is there and not one for all."""
            rows, shape = rows_of(op, name, given), shapes[name]
            own = dim + len(shape) - rows.dimensions - leading
            if rows.broadcasts and (own < 0 or shape[own] == 1):
                return Replicate()
            return Shard(own)

        def along_of_channels(dim: int, name: str) -> Any:
            first, whole = next(iter(shapes.items()))
            shape, own = shapes[name], dim + len(shapes[name]) - len(whole)
            if name != first and (len(shape) == 1 or own < 0 or shape[own] == 1):
                return Replicate()
            return Shard(own)

        def arguments(placement: Callable[[str], Any]) -> list[Any]:
            return [placement(name) if name in shapes else None for name in given]

        placed, dims = along, list(range(leading))
        if has_channels(name_of(op)):
            rank = len(next(iter(shapes.values())))
            placed, dims = along_of_channels, [dim for dim in range(rank) if dim != 1]
        return [
            ([Replicate()] * results, arguments(lambda name: Replicate())),
            *(([Shard(dim)] * results, arguments(functools.partial(placed, dim))) for dim in dims),
        ]

    return shardings


def _meta(tensor: Any) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _write(
    _cls: type, op: torch._ops.OpOverload, _types: Any, args: Any, kwargs: dict[str, Any] | None
) -> None:
    """The rule of an ``.out`` overload; DTensor's own machinery wants something returned."""
    from torch.distributed.tensor import DTensor

    given = bound(op, args, kwargs or {})
    tensors = tensor_arguments(given)
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            raise RuntimeError(f"{op._schema.name}: {name} must be a DTensor, as others are")
    # Shapes and dtypes of the whole are checked as those of any call.
    op(**given | {name: _meta(tensor) for name, tensor in tensors.items()})
    outs = [given.pop(name) for name in list(given) if is_written(op, name)]
    results = getattr(torch.ops.mlxnorm, name_of(op)).default(**given)
    results = results if isinstance(results, tuple) else (results,)
    for out, result in zip(outs, results, strict=True):
        out.copy_(result)


def register(library: torch.library.Library) -> None:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.experimental import register_sharding

    for name in OPS:
        packet = getattr(torch.ops.mlxnorm, name)
        register_sharding(packet.default)(_shardings(packet.default))
        library._register_torch_dispatch_rule(f"{name}.out", DTensor, _write)
