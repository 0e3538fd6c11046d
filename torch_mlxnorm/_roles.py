"""What the tensor arguments of an operator are, for those who take a call apart or make one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_mlxnorm import _C

Role = str


class Rows(NamedTuple):
    """How the shape of a tensor with some role is made up."""

    dimensions: int  # the last ones, which belong to a row
    broadcasts: bool  # the others, to the leading dimensions of the results; else they are those
    may_be_scalar: bool  # it may have one element instead


ROLES: dict[Role, Rows] = {role: Rows(*rows) for role, rows in _C.roles().items()}

# Every operator's tensors and what they are, in the order of the README and of the schemas: the
# tables of csrc/ops.
OPS: dict[str, dict[str, Role]] = _C.ops()

# Those of them that the usual call does not have: keyword arguments that make the op do more.
EXTRAS: dict[str, list[str]] = _C.extras()

# The tensors that each operator's results have shape and dtype of.
LIKES: dict[str, dict[str, str]] = _C.likes()

# Of one dtype, the results'. A residual may be float32 beside 16 bits, the others, operands, have
# any.
INPUTS: tuple[Role, ...] = ("input", "experts", "channels")


def qualified(name: str, overload: str) -> str:
    """What the dispatcher calls an overload of an operator."""
    return name if overload == "default" else f"{name}.{overload}"


def name_of(op: torch._ops.OpOverload) -> str:
    return op._schema.name.removeprefix("mlxnorm::")


def has_channels(name: str) -> bool:
    """Are its rows along dimension 1, ``[N, C, ...]``?"""
    return "channels" in OPS[name].values()


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


def rows_of(op: torch._ops.OpOverload, name: str, given: Mapping[str, Any]) -> Rows:
    """Of an argument that is a tensor, in a call with these arguments."""
    role = "input" if is_written(op, name) else OPS[name_of(op)][name]
    rows = ROLES[role]
    if given.get("across_heads") and role in ("input", "angles"):
        return rows._replace(dimensions=2)  # all heads of a token are a row
    return rows


def leading_dimensions(
    op: torch._ops.OpOverload, shapes: Mapping[str, torch.Size], given: Mapping[str, Any]
) -> int:
    """Of the results, by the shapes of a call's tensors."""
    name, shape = next(iter(shapes.items()))
    return len(shape) - rows_of(op, name, given).dimensions
