"""What the tensor arguments of an operator are, for those who take a call apart or make one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from torch_mlxnorm import _C

# The operators' names, in the order of the README.
OPS: list[str] = _C.ops()

Role = Literal["activation", "experts", "weight", "scale", "routing_weights"]


def role(name: str) -> Role:
    """What an operator's tensor argument of this name is."""
    special: dict[str, Role] = {
        "expert_outputs": "experts",
        "routing_weights": "routing_weights",
        "scale": "scale",
        "layer_scalar": "scale",
        "w2": "weight",
        "w3": "weight",
    }
    return special.get(name, "weight" if "weight" in name else "activation")


def overloads() -> list[torch._ops.OpOverload]:
    """Both overloads of every operator."""
    packets = [getattr(torch.ops.mlxnorm, name) for name in OPS]
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
    weights, are shared by all rows. The first tensor is an activation, or the experts."""
    x = next(iter(shapes.values()))
    return [
        name
        for name, shape in shapes.items()
        if is_written(op, name)
        or role(name) in ("activation", "experts", "routing_weights")
        # rms_norm_mul's may be either.
        or (name == "scale" and name_of(op) == "rms_norm_mul" and shape == x)
    ]
