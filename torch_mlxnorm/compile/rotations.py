"""Finds rotary embeddings in the ways that models write them: of halves, ``y * cos + cat(-y1, y0) *
sin``, and of neighbours, as ``stack(-y1, y0)``, complex numbers, products that are written to every
second element, or matrices of 2 x 2. With float32 products all of them are rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from torch_mlxnorm.compile.nodes import (
    DTYPES,
    VIEWS,
    aten,
    both_ways,
    cast_source,
    dtype_of,
    equal,
    factors,
    is_call,
    is_cast_to,
    last_dim,
    only_user,
    same_shape,
    same_sizes,
    same_values,
    slice_of,
    source,
    tensor_of,
    terms,
    widened,
)

# PyTorch contracts products of complex numbers, and Lumina 2 has them in float64 on the CPU:
# rounded to 16 bits they are the same, but for one in ten thousand.
_COMPLEX = (torch.complex64, torch.complex128)
_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Table:
    """What is read of a node: itself, the ``"real"`` or ``"imaginary"`` part of a complex table, or
    from 2 x 2 matrices ``[..., pairs, 2, 2]`` the ``"diagonal"``, or the ``"off diagonal"`` with
    the sign that a rotation has there."""

    node: Node
    part: str = ""

    @property
    def shape(self) -> list[Any]:
        shape = list(tensor_of(self.node).shape)
        return [*shape[:-3], 2 * shape[-3]] if "diagonal" in self.part else shape


@dataclass(frozen=True)
class Rotation:
    """``end`` is the rotated ``y``, whose last dimension may have a part that is not rotated."""

    end: Node
    y: Node
    cos: Table
    sin: Table
    rounding: str
    interleaved: bool = False
    full: bool = True  # tables have a column for each element, not for each pair


def rotation_to(end: Any) -> Rotation | None:
    """The rotation that this node ends, of which nothing is wanted but the end."""
    for find in (_turned, _complex, _written, _by_matrices):
        for found in find(end):
            if _fits(found) and _is_closed(found) and (whole := _with_the_rest(found)) is not None:
                return whole
    return None


def _fits(found: Rotation) -> bool:
    """Tables are broadcast to the pairs or elements of y."""
    y = tensor_of(found.y)
    if y is None or y.dtype not in DTYPES or not same_shape(found.end, found.y):
        return False
    width = y.shape[-1]
    if not isinstance(width, int) or width % 2 or not width or dtype_of(found.end) != y.dtype:
        return False
    for table in (found.cos, found.sin):
        value, shape = tensor_of(table.node), table.shape
        dtypes = _COMPLEX if table.part in ("real", "imaginary") else DTYPES
        if value is None or value.device != y.device or not 1 <= len(shape) <= y.dim():
            return False
        if value.dtype not in dtypes:
            return False
        if not equal(shape[-1], width if found.full else width // 2):
            return False
        leading = zip(shape[:-1], y.shape[y.dim() - len(shape) : -1], strict=True)
        if not all(equal(mine, 1) or equal(mine, its) for mine, its in leading):
            return False
    return same_sizes(found.cos.shape[-1:], found.sin.shape[-1:])


def _is_closed(found: Rotation) -> bool:
    """Whether what is between y and the end is used for the end alone."""
    inside: dict[Node, bool] = {found.y: True, found.cos.node: False, found.sin.node: False}

    def comes_of_y(node: Node) -> bool:
        if node not in inside:
            inside[node] = node > found.y and any([comes_of_y(n) for n in node.all_input_nodes])
        return inside[node]

    comes_of_y(found.end)
    between = {node for node, of_y in inside.items() if of_y}
    return all(user in between for node in between if node is not found.end for user in node.users)


def _with_the_rest(found: Rotation) -> Rotation | None:
    """Where y is the front of rows: with the part of them that is not rotated."""
    y = found.y
    if not is_call(y, aten.slice.Tensor) or not last_dim(y.args[1] if len(y.args) > 1 else 0, y):
        return found
    whole, size = y.args[0], tensor_of(y).shape[-1]
    joined, total = only_user(found.end), tensor_of(y.args[0]).shape[-1]
    if not is_call(joined, aten.cat.default) or len(joined.args[0]) != 2:
        return None
    front, rest = joined.args[0]
    if front is not found.end or not last_dim(_argument(joined, 1, 0), y):
        return None
    if only_user(rest) is not joined or not isinstance(total, int) or set(whole.users) != {y, rest}:
        return None
    if slice_of(y, whole) != (0, size) or slice_of(rest, whole) != (size, total):
        return None
    return replace(found, end=joined, y=whole)


def _argument(node: Node, place: int, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else default


def _ends(total: Node, y: Node) -> Iterator[tuple[Node, str]]:
    """Where a rotation that is summed in total ends, seen in the shape of y, and its rounding."""
    end = total
    if not same_shape(end, y):
        view = only_user(end)
        if not is_call(view, *VIEWS) or not same_shape(view, y):
            return
        end = view
    if dtype_of(total) == dtype_of(y):
        yield end, "products"
    elif dtype_of(total) in _WIDE and is_cast_to(only_user(end), dtype_of(y)):
        yield only_user(end), "once"


# ---- neighbours ----------------------------------------------------------------------------------


def _paired(view: Any) -> Node | None:
    """The rows of which view is the pairs of neighbours, ``[..., pairs, 2]``."""
    view = widened(view)
    if not is_call(view, *VIEWS):
        return None
    old, new = tensor_of(view.args[0]), tensor_of(view)
    if old is None or new is None or new.dim() != old.dim() + 1 or not equal(new.shape[-1], 2):
        return None
    if not same_sizes(new.shape[:-2], old.shape[:-1]):
        return None
    return widened(view.args[0])


def _element(node: Any) -> tuple[Node, int] | None:
    """The rows of which node has the first elements of pairs (0), or the second (1)."""
    node = widened(node)
    pairs, number = _selected(node)
    rows = _paired(pairs)
    return None if rows is None or number not in (0, 1) else (rows, number)


def _selected(node: Any) -> tuple[Node | None, Any]:
    """A tensor and the number of the element of its last dimension that node is."""
    if is_call(node, aten.select.int) and last_dim(node.args[1], node.args[0]):
        return node.args[0], node.args[2]
    if node.__class__ is Node and getattr(node.target, "__name__", "") == "getitem":
        split, number = node.args
        if is_call(split, aten.unbind.int) and last_dim(_argument(split, 1, 0), split.args[0]):
            return split.args[0], number
    return None, None


def _stacked(node: Any) -> tuple[Node, Node] | None:
    """Two tensors of which node has the elements by turns."""
    node = source(node)
    if not is_call(node, *VIEWS):
        return None
    pairs = source(node.args[0])
    if is_call(pairs, aten.stack.default) and len(pairs.args[0]) == 2:
        first, second = pairs.args[0]
        axis = _argument(pairs, 1, 0)
    elif is_call(pairs, aten.cat.default) and len(pairs.args[0]) == 2:
        columns = pairs.args[0]
        if not all(
            is_call(column, aten.unsqueeze.default) and last_dim(column.args[1], column)
            for column in columns
        ):
            return None
        (first, second), axis = [column.args[0] for column in columns], _argument(pairs, 1, 0)
    else:
        return None
    if not last_dim(axis, pairs) or not same_shape(first, second):
        return None
    return (first, second) if _paired_shape(pairs, node) else None


def _paired_shape(pairs: Node, rows: Node) -> bool:
    old, new = tensor_of(pairs).shape, tensor_of(rows).shape
    return len(old) == len(new) + 1 and same_sizes(old[:-2], new[:-1])


def _turned(total: Any) -> Iterator[Rotation]:
    """``y * cos + turn * sin``, where turn is y with each pair (y0, y1) made (-y1, y0)."""
    pair = terms(total)
    if pair is None or not all(isinstance(part, Node) for part in pair):
        return
    for plain, turned in (pair, pair[::-1]):
        for y, cos in both_ways(factors(plain)):
            for turn, sin in both_ways(factors(turned)):
                if not all(isinstance(node, Node) for node in (y, cos, turn, sin)):
                    continue
                rows = widened(y)
                interleaved = _is_turn_of_neighbours(turn, rows)
                if not interleaved and not _is_turn_of_halves(turn, rows):
                    continue
                if not dtype_of(plain) == dtype_of(turned) == dtype_of(total):
                    continue
                for end, rounding in _ends(total, rows):
                    yield Rotation(end, rows, Table(cos), Table(sin), rounding, interleaved)


def _is_turn_of_neighbours(turn: Any, y: Node) -> bool:
    stacked = _stacked(widened(turn))
    if stacked is None or not is_call(negated := widened(stacked[0]), aten.neg.default):
        return False
    high, low = _element(negated.args[0]), _element(stacked[1])
    return high == (y, 1) and low == (y, 0)


def _is_turn_of_halves(turn: Any, y: Node) -> bool:
    turn, value = widened(turn), tensor_of(y)
    if not is_call(turn, aten.cat.default) or len(turn.args[0]) != 2 or value is None:
        return False
    size = value.shape[-1]
    if not isinstance(size, int) or not last_dim(_argument(turn, 1, 0), turn):
        return False
    negated, low = turn.args[0]
    if not is_call(negated, aten.neg.default):
        return False
    return slice_of(low, y) == (0, size // 2) and slice_of(negated.args[0], y) == (size // 2, size)


def _complex(node: Any) -> Iterator[Rotation]:
    """``view_as_real(view_as_complex(pairs) * freqs)``."""
    if not is_call(node, aten.view_as_real.default):
        return
    for numbers, freqs in both_ways(factors(node.args[0])):
        if not is_call(numbers, aten.view_as_complex.default) or not isinstance(freqs, Node):
            continue
        if (y := _paired(numbers.args[0])) is None or dtype_of(freqs) not in _COMPLEX:
            continue
        if dtype_of(y) == torch.float32:
            continue
        for end, rounding in _ends(node, y):
            cos, sin = Table(freqs, "real"), Table(freqs, "imaginary")
            yield Rotation(end, y, cos, sin, rounding, interleaved=True, full=False)


def _written(end: Any) -> Iterator[Rotation]:
    """Both elements of pairs, written to every second element of a tensor, or stacked."""
    for first, second, finish in _elements_written(end):
        found = _two_products(first, second)
        if found is None:
            continue
        y, cos, sin = found
        single = dtype_of(first) == torch.float32
        rounding = "products" if dtype_of(first) == dtype_of(y) else "once"
        if rounding == "once" and not single:
            continue
        last = finish
        if dtype_of(finish) != dtype_of(y):
            last = only_user(finish)
            if last is None or not is_cast_to(last, dtype_of(y)):
                continue
        yield Rotation(last, y, Table(cos), Table(sin), rounding, interleaved=True, full=False)


def _elements_written(end: Any) -> Iterator[tuple[Node, Node, Node]]:
    if (stacked := _stacked(end)) is not None:
        yield (*stacked, end)
    if not is_call(end, aten.slice_scatter.default):
        return
    inner = end.args[0]
    if is_call(inner, aten.slice_scatter.default):
        parts = {_every_second(node): _copied(node.args[1]) for node in (end, inner)}
        if parts.keys() == {0, 1} and all(isinstance(part, Node) for part in parts.values()):
            yield parts[0], parts[1], end


def _every_second(scatter: Node) -> int | None:
    """Where it starts to write every second element of an even last dimension."""
    _, _, dim, start, stop, step = (*scatter.args, *(0, None, None, 1)[len(scatter.args) - 2 :])
    size = tensor_of(scatter).shape[-1]
    if not last_dim(dim, scatter) or step != 2 or not isinstance(size, int) or size % 2:
        return None
    return (start or 0) if stop is None or (isinstance(stop, int) and stop >= size) else None


def _copied(node: Any) -> Any:
    """What is written to a tensor of another dtype, perhaps."""
    if is_call(node, aten.copy.default):
        return node.args[1]
    old = cast_source(node)
    return node if old is None else old


def _two_products(first: Any, second: Any) -> tuple[Node, Node, Node] | None:
    """``y0 * cos - y1 * sin`` and ``y0 * sin + y1 * cos``: y, cos and sin."""
    if not is_call(first, aten.sub.Tensor) or len(first.args) != 2 or first.kwargs:
        return None
    pair = terms(second)
    if pair is None:
        return None
    y0_cos, y1_sin = (_element_times(part) for part in first.args)
    for parts in (pair, pair[::-1]):
        y0_sin, y1_cos = (_element_times(part) for part in parts)
        found = [y0_cos, y1_sin, y0_sin, y1_cos]
        if any(part is None for part in found):
            return None
        if [number for _, number, _ in found] != [0, 1, 0, 1]:
            continue
        (y, _, cos), (_, _, sin) = y0_cos, y1_sin
        dtypes = {dtype_of(node) for node in (first, second, *first.args, *pair)}
        if any(rows is not y for rows, _, _ in found) or len(dtypes) != 1:
            continue
        if _says_the_same(sin, y0_sin[2]) and _says_the_same(cos, y1_cos[2]):
            return y, cos, sin
    return None


def _element_times(product: Any) -> tuple[Node, int, Node] | None:
    for element, factor in both_ways(factors(product)):
        if isinstance(factor, Node) and (found := _element(element)) is not None:
            return (*found, factor)
    return None


def _says_the_same(a: Any, b: Any) -> bool:
    """The same node, or the same view of one."""
    if a is b or same_values(a, b):
        return True
    if not (is_call(a, b.target) and is_call(b, a.target)):
        return False
    views = (aten.slice.Tensor, aten.select.int, aten.unsqueeze.default)
    return a.target in views and a.args[1:] == b.args[1:] and _says_the_same(a.args[0], b.args[0])


def _by_matrices(total: Any) -> Iterator[Rotation]:
    """``m[..., 0] * y[..., 0] + m[..., 1] * y[..., 1]`` with matrices ``[..., pairs, 2, 2]`` and
    the pairs as ``[..., pairs, 1, 2]``."""
    pair = terms(total)
    if pair is None or dtype_of(total) != torch.float32:
        return
    parts = [_column_times_element(part) for part in pair]
    if any(part is None for part in parts):
        return
    (m, y, number), (other_m, other_y, other_number) = parts
    if m is other_m and y is other_y and {number, other_number} == {0, 1}:
        for end, rounding in _ends(total, y):
            cos, sin = Table(m, "diagonal"), Table(m, "off diagonal")
            yield Rotation(end, y, cos, sin, rounding, interleaved=True)


def _column_times_element(product: Any) -> tuple[Node, Node, int] | None:
    for column, element in both_ways(factors(product)):
        (matrices, number), (pairs, its_number) = _selected(column), _selected(element)
        if matrices is None or pairs is None or number != its_number or number not in (0, 1):
            continue
        value = tensor_of(matrices)
        if value is None or value.dim() < 3 or value.dtype != torch.float32:
            continue
        if not same_sizes(value.shape[-2:], (2, 2)) or not is_call(pairs, *VIEWS):
            continue
        old, new = tensor_of(pairs.args[0]), tensor_of(pairs)
        if new.dim() == old.dim() + 2 and same_sizes(new.shape[-2:], (1, 2)):
            if same_sizes(new.shape[:-3], old.shape[:-1]) and equal(new.shape[-3], value.shape[-3]):
                return matrices, widened(pairs.args[0]), number
    return None
