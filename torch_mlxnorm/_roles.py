"""What the tensor arguments of an operator are, for those who take a call apart: vmap, DTensor and
nested tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_mlxnorm import _C

# The names of each operator's activations.
ACTIVATIONS: dict[str, list[str]] = _C.activations()


def overloads() -> list[torch._ops.OpOverload]:
    """Both overloads of every operator."""
    packets = [getattr(torch.ops.mlxnorm, name) for name in ACTIVATIONS]
    return [overload for packet in packets for overload in (packet.default, packet.out)]


def name_of(op: torch._ops.OpOverload) -> str:
    return op._schema.name.removeprefix("mlxnorm::")


def bound(
    op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, but for those left at their defaults."""
    names = (argument.name for argument in op._schema.arguments)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def tensor_arguments(given: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in given.items() if isinstance(value, Tensor)}


def is_written(op: torch._ops.OpOverload, name: str) -> bool:
    """Is this an ``out`` argument?"""
    return any(argument.name == name and argument.is_out for argument in op._schema.arguments)


def rows_of(op: torch._ops.OpOverload, shapes: Mapping[str, torch.Size]) -> list[str]:
    """The tensors that have rows of their own for each row of the results; the others, such as
    weights, are shared by all rows."""
    activations = ACTIVATIONS[name_of(op)]
    x = shapes[activations[0]]
    return [
        name
        for name, shape in shapes.items()
        if name in activations
        or is_written(op, name)
        or name == "routing_weights"
        # rms_norm_mul's may be either.
        or (name == "scale" and name_of(op) == "rms_norm_mul" and shape == x)
    ]
