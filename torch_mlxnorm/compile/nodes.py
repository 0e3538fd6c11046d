"""What a node of an ATen graph is: casts, squares, shapes, and what may not be moved past it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICES = ("cpu", "mps", "meta")  # those that the operators have kernels for

_CASTS = (
    torch.ops.prims.convert_element_type.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten.type_as.default,
)
_SAME = (aten.alias.default, aten.detach.default)
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def is_call(node: Any, *targets: Any) -> TypeGuard[Node]:
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def tensor_of(node: Any) -> Tensor | None:
    """The fake tensor of a node."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def dtype_of(node: Any) -> torch.dtype | None:
    value = tensor_of(node)
    return None if value is None else value.dtype


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def equal(a: Any, b: Any) -> bool:
    """Whether two sizes are the same whatever the symbols are. Adds no guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return statically_known_true(a == b)


def same_sizes(a: Iterable[Any], b: Iterable[Any]) -> bool:
    a, b = list(a), list(b)
    return len(a) == len(b) and all(map(equal, a, b))


def same_shape(a: Any, b: Any) -> bool:
    x, y = tensor_of(a), tensor_of(b)
    return x is not None and y is not None and same_sizes(x.shape, y.shape)


def alike(*nodes: Any) -> bool:
    """Tensors of one shape, dtype and device."""
    first = tensor_of(nodes[0])
    return first is not None and all(
        same_shape(nodes[0], node)
        and dtype_of(node) == first.dtype
        and node.meta["val"].device == first.device
        for node in nodes[1:]
    )


def is_ours(node: Any) -> bool:
    """What an operator may take as its input."""
    value = tensor_of(node)
    return (
        value is not None
        and value.layout == torch.strided
        and value.dtype in DTYPES
        and value.device.type in DEVICES
        and value.dim() >= 1
        and not equal(value.shape[-1], 0)
        and not value.is_quantized
    )


def broadcasts(operand: Any, to: Any) -> bool:
    """Whether operand has all of the last dimension, and others that broadcast without growing."""
    value, other = tensor_of(operand), tensor_of(to)
    return (
        value is not None
        and other is not None
        and value.dtype in DTYPES
        and value.device == other.device
        and 1 <= value.dim() <= other.dim()
        and equal(value.shape[-1], other.shape[-1])
        and all(
            equal(mine, 1) or equal(mine, its)
            for mine, its in zip(
                value.shape[:-1],
                other.shape[other.dim() - value.dim() : other.dim() - 1],
                strict=True,
            )
        )
    )


def is_row(operand: Any, to: Any) -> bool:
    """A weight: ``[dim]``."""
    return broadcasts(operand, to) and operand.meta["val"].dim() == 1


def is_weight(operand: Any, to: Any) -> bool:
    """A weight, perhaps one for each head, and no tensor of activations."""
    if not broadcasts(operand, to):
        return False
    value = operand.meta["val"]
    return value.dim() < to.meta["val"].dim() or all(equal(size, 1) for size in value.shape[:-1])


def source(node: Any) -> Any:
    """What node is another name of."""
    while is_call(node, *_SAME):
        node = node.args[0]
    return node


def cast_source(node: Any) -> Node | None:
    """What node converts to another dtype, if it does nothing else."""
    node = source(node)
    if not is_call(node, *_CASTS) or not isinstance(node.args[0], Node):
        return None
    old, new = tensor_of(node.args[0]), tensor_of(node)
    if old is None or new is None or old.device != new.device or old.layout != new.layout:
        return None
    return source(node.args[0])


def is_cast_to(node: Any, dtype: torch.dtype) -> bool:
    return cast_source(node) is not None and dtype_of(node) == dtype


def widened(node: Any) -> Any:
    """What node has the values of, where it is a cast that loses nothing."""
    node = source(node)
    while (old := cast_source(node)) is not None:
        if dtype_of(old) != dtype_of(node) and not (
            dtype_of(node) == torch.float32 and dtype_of(old) in DTYPES
        ):
            break
        node = old
    return node


def same_values(a: Any, b: Any) -> bool:
    return isinstance(a, Node) and isinstance(b, Node) and widened(a) is widened(b)


def factors(node: Any) -> tuple[Any, Any] | None:
    """Of a product of tensors, or of a tensor and a number."""
    if is_call(node, aten.mul.Tensor, aten.mul.Scalar) and len(node.args) == 2 and not node.kwargs:
        return node.args[0], node.args[1]
    return None


def terms(node: Any) -> tuple[Any, Any] | None:
    """Of a sum of tensors, or of a tensor and a number."""
    if not is_call(node, aten.add.Tensor, aten.add.Scalar):
        return None
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        return None
    return node.args[0], node.args[1]


def tensor_and_number(pair: tuple[Any, Any] | None) -> tuple[Node, float] | None:
    if pair is None:
        return None
    a, b = pair
    if isinstance(a, Node) and is_number(b):
        return a, float(b)
    if isinstance(b, Node) and is_number(a):
        return b, float(a)
    return None


def other_of(pair: tuple[Any, Any] | None, node: Node) -> Any:
    """The one of a pair that is not node."""
    if pair is None or (pair[0] is node) == (pair[1] is node):
        return None
    return pair[1] if pair[0] is node else pair[0]


def both_ways(pair: tuple[Any, Any] | None) -> list[tuple[Any, Any]]:
    return [] if pair is None else [pair, pair[::-1]]


def only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def viewed_rows(node: Any) -> Node | None:
    """What node is a view of, if rows stay what they are."""
    if not is_call(node, *VIEWS) or not isinstance(node.args[0], Node):
        return None
    old, new = tensor_of(node.args[0]), tensor_of(node)
    if old is None or new is None or old.dim() < 1 or new.dim() < 1:
        return None
    return node.args[0] if equal(old.shape[-1], new.shape[-1]) else None


def last_dim(dim: Any, of: Any) -> bool:
    """Whether it is the last dimension of a tensor."""
    value = tensor_of(of)
    return value is not None and isinstance(dim, int) and dim in (-1, value.dim() - 1)


def slice_of(node: Any, of: Node) -> tuple[int, int] | None:
    """First and last of the elements that node takes of the last dimension of a tensor, or of what
    has its values, with step 1."""
    if not is_call(node, aten.slice.Tensor) or node.kwargs or not same_values(node.args[0], of):
        return None
    size = tensor_of(of).shape[-1]
    dim, first, last, step = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])
    first, last = first or 0, size if last is None else last
    if not all(isinstance(n, int) for n in (first, last, size)) or first < 0 or step != 1:
        return None
    return (first, size + last if last < 0 else min(last, size)) if last_dim(dim, of) else None


def mutates(node: Node) -> bool:
    """Whether node may write to what others read: nothing is moved past it."""
    if node.op != "call_function":
        return node.op in ("call_module", "call_method")
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable
    if isinstance(target, torch._ops.HigherOrderOperator):
        return not target.name().startswith("auto_functionalized")
    module = getattr(target, "__module__", "")
    return module not in ("_operator", "operator", "math", "builtins") and not getattr(
        target, "__name__", ""
    ).startswith("sym_")


def is_random(node: Node) -> bool:
    """Whether the order of such nodes matters."""
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags


def reads_strides(node: Node) -> bool:
    """Whether the values of node depend on the strides of what a graph computes."""
    if node.op != "call_function" or "as_strided" not in str(node.target):
        return False
    return any(read.op == "call_function" for read in node.all_input_nodes)
