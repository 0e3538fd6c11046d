"""Norms of heads that are rotated, in whichever way (:mod:`rotations`), where what is rotated is a
norm, another layout of one, or several joined."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from torch_mlxnorm.compile.nodes import (
    VIEWS,
    aten,
    dtype_of,
    equal,
    is_call,
    is_row,
    last_dim,
    only_user,
    same_sizes,
    tensor_of,
    viewed_rows,
)
from torch_mlxnorm.compile.norms import Norm, as_norm
from torch_mlxnorm.compile.rewriting import Rewriter, ops
from torch_mlxnorm.compile.rotations import Rotation, Table, rotation_to


@dataclass
class Heads:
    """``y`` is the norm, in another order of its dimensions and, across heads, split into them."""

    norm: Norm
    order: list[int]
    split: Node | None


def fuse_rotary(rewriter: Rewriter) -> None:
    """Puts ``rms_norm_rope`` where a norm is rotated, and then one call where there are two or
    three side by side."""
    tables: dict[tuple[Any, ...], Node] = {}
    for node in list(rewriter.graph.nodes):
        if node._erased or (rotation := rotation_to(node)) is None:
            continue
        if (y := _cut_before_the_norm(rewriter, rotation.y)) is not rotation.y:
            rotation = replace(rotation, y=y)
        if (joined := _joined_heads(rotation.y)) is not None:
            _rotate(rewriter, rotation, *joined, tables)
    _side_by_side(rewriter)


def _cut_before_the_norm(rewriter: Rewriter, y: Node) -> Node:
    """Some rows of a norm as a norm of some rows, where the others are wanted without rotation."""
    if not _is_slice_of_rows(y) or (norm := as_norm(y.args[0])) is None:
        return y
    if not all(_is_slice_of_rows(user) for user in norm.end.users):
        return y
    if norm.weight is not None and not is_row(norm.weight, norm.x):
        return y
    new = y
    for user in list(norm.end.users):
        rows = rewriter.emit(user, aten.slice.Tensor, norm.x, *user.args[1:])
        call = rewriter.emit(
            user, ops.rms_norm.default, rows, norm.weight, norm.eps, **norm.options
        )
        rewriter.replace(user, call)
        new = call if user is y else new
    return new


def _is_slice_of_rows(node: Any) -> bool:
    if not is_call(node, aten.slice.Tensor) or node.kwargs or len(node.args) < 2:
        return False
    return not last_dim(node.args[1], node)


def _joined_heads(y: Node) -> tuple[list[Heads], int | None] | None:
    """Norms that are rotated, and the dimension in which they are joined before."""
    if not is_call(y, aten.cat.default):
        return None if (heads := _heads(y)) is None else ([heads], None)
    dim = y.args[1] if len(y.args) > 1 else 0
    if last_dim(dim, y) or any(only_user(part) is not y for part in y.args[0]):
        return None
    parts = [_heads(part) for part in y.args[0]]
    if any(part is None for part in parts):
        return None
    return parts, dim % tensor_of(y).dim()


def _heads(y: Node) -> Heads | None:
    dims = tensor_of(y).dim()
    order = list(range(dims))
    node = y
    while is_call(node, aten.transpose.int, aten.permute.default):
        if node is not y and only_user(node) is None:
            return None
        step = list(range(dims))
        if node.target is aten.permute.default:
            step = [dim % dims for dim in node.args[1]]
        else:
            a, b = (dim % dims for dim in node.args[1:3])
            step[a], step[b] = step[b], step[a]
        order = [step[i] for i in order]
        node = node.args[0]
    if order[-1] != dims - 1:
        return None
    split = None
    norm = as_norm(node)
    if norm is None and is_call(node, *VIEWS):
        split = node
        norm = as_norm(node.args[0])
        if norm is None or not _splits_heads(node, norm):
            return None
        if only_user(norm.end) is None or (node is not y and only_user(node) is None):
            return None
    if norm is None or (norm.end is not y and only_user(norm.end) is None):
        return None
    if norm.weight is not None and not is_row(norm.weight, norm.x):
        return None
    return Heads(norm, order, split)


def _splits_heads(view: Node, norm: Norm) -> bool:
    old, new = tensor_of(norm.end).shape, tensor_of(view).shape
    return (
        viewed_rows(view) is None
        and len(new) == len(old) + 1
        and same_sizes(new[:-2], old[:-1])
        and equal(new[-1] * new[-2], old[-1])
    )


def _rotate(
    rewriter: Rewriter,
    rotation: Rotation,
    parts: list[Heads],
    axis: int | None,
    known: dict[tuple[Any, ...], Node],
) -> None:
    end, dims = rotation.end, tensor_of(rotation.y).dim()
    read = [(heads.norm.x, heads.norm.weight) for heads in parts]
    if not rewriter.may_replace([end], [read, rotation.cos.node, rotation.sin.node]):
        return
    tables = [_materialized(rewriter, end, t, known) for t in (rotation.cos, rotation.sin)]
    results: list[Node] = []
    start: int | Node = 0
    for heads in parts:
        x = heads.norm.x
        if heads.split is not None:
            x = rewriter.emit(end, aten.reshape.default, x, heads.split.args[1])
        mine = tables
        if axis is not None:
            size = rewriter.size(x, heads.order[axis], end)
            stop = rewriter.sum(start, size, end)
            mine = [_rows_of(rewriter, end, t, dims - axis, (start, stop), known) for t in tables]
            start = stop
        results.append(_rotated(rewriter, rotation, heads, x, mine, known))
    new = results[0] if axis is None else rewriter.emit(end, aten.cat.default, results, axis)
    rewriter.replace(end, new)


def _rotated(
    rewriter: Rewriter,
    rotation: Rotation,
    heads: Heads,
    x: Node,
    tables: list[Node],
    known: dict[tuple[Any, ...], Node],
) -> Node:
    norm, end = heads.norm, rotation.end
    dims = len(heads.order)
    back = [heads.order.index(i) for i in range(dims)]
    cos, sin = (_table(rewriter, t, dims, back, known) for t in tables)
    options = norm.options | {"rope_rounding": rotation.rounding, "round_intermediates": True}
    options |= {"full_tables": True} if rotation.full else {}
    options |= {"interleaved": True} if rotation.interleaved else {}
    options |= {"across_heads": True} if heads.split is not None else {}
    call = rewriter.emit(
        end, ops.rms_norm_rope.default, x, norm.weight, cos, sin, norm.eps, **options
    )
    if back != list(range(dims)):
        call = rewriter.emit(end, aten.permute.default, call, heads.order)
    return call


def _materialized(
    rewriter: Rewriter, place: Node, table: Table, known: dict[tuple[Any, ...], Node]
) -> Node:
    """A tensor with rows of stride 1, once for all that read it."""
    node = _once(table.node, known)
    if not table.part and equal(tensor_of(node).stride(-1), 1):
        return node
    key = (node, table.part)
    if key not in known:
        place = _after(node)
        if table.part in ("real", "imaginary"):
            parts = rewriter.emit(place, aten.view_as_real.default, node)
            number = ("real", "imaginary").index(table.part)
            rows = rewriter.emit(place, aten.select.int, parts, -1, number)
            if dtype_of(rows) == torch.float64:
                convert = torch.ops.prims.convert_element_type.default
                rows = rewriter.emit(place, convert, rows, torch.float32)
        elif table.part:
            rows = _of_matrices(rewriter, place, node, table.part)
        else:
            rows = node
        if not equal(tensor_of(rows).stride(-1), 1):
            kind = torch.contiguous_format
            rows = rewriter.emit(place, aten.clone.default, rows, memory_format=kind)
        known[key] = rows
    return known[key]


def _of_matrices(rewriter: Rewriter, place: Node, matrices: Node, part: str) -> Node:
    """Of ``[[a, b], [c, d]]`` a and d by turns, or -b and c: a sum with a product's negative is
    their difference, to the bit."""
    rows = ((0, 0), (1, 1)) if part == "diagonal" else ((0, 1), (1, 0))
    columns = []
    for i, j in rows:
        row = rewriter.emit(place, aten.select.int, matrices, -2, i)
        column = rewriter.emit(place, aten.select.int, row, -1, j)
        if (i, j) == (0, 1):
            column = rewriter.emit(place, aten.neg.default, column)
        columns.append(rewriter.emit(place, aten.unsqueeze.default, column, -1))
    pairs = rewriter.emit(place, aten.cat.default, columns, -1)
    *sizes, count, _ = rewriter.sizes(pairs, place)
    return rewriter.emit(place, aten.reshape.default, pairs, [*sizes, 2 * count])


def _rows_of(
    rewriter: Rewriter,
    place: Node,
    table: Node,
    from_the_end: int,
    rows: tuple[int | Node, int | Node],
    known: dict[tuple[Any, ...], Node],
) -> Node:
    """What of a table belongs to some rows of a dimension."""
    shape = tensor_of(table).shape
    if from_the_end > len(shape) or equal(shape[-from_the_end], 1):
        return table
    values = [n if isinstance(n, int) else n.meta["val"] for n in rows]
    key = (table, from_the_end, str(values))
    if key not in known:
        axis = len(shape) - from_the_end
        known[key] = rewriter.emit(place, aten.slice.Tensor, table, axis, *rows)
    return known[key]


def _after(node: Node) -> Node:
    place = node.next
    while place.op in ("placeholder", "get_attr"):
        place = place.next
    return place


def _table(
    rewriter: Rewriter, table: Node, dims: int, order: list[int], known: dict[tuple[Any, ...], Node]
) -> Node:
    """In the order of the norm's dimensions; the same node for the same table."""
    table = _once(table, known)
    if order == list(range(dims)):
        return table
    key = (table, *order)
    if key not in known:
        place, whole = _after(table), table
        for _ in range(dims - tensor_of(table).dim()):
            whole = rewriter.emit(place, aten.unsqueeze.default, whole, 0)
        known[key] = rewriter.emit(place, aten.permute.default, whole, order)
    return known[key]


_SHOWN_AS = (
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.transpose.int,
    aten.permute.default,
    *VIEWS,
)


def _once(table: Node, known: dict[tuple[Any, ...], Node]) -> Node:
    """One node for views of a table that say the same."""
    if not is_call(table, *_SHOWN_AS) or table.kwargs:
        return table
    of, *rest = table.args
    return known.setdefault((table.target, _once(of, known), str(rest)), table)


_NEAR = 4  # rotations that are looked at for one with the same tables: text and image by turns


def _side_by_side(rewriter: Rewriter) -> None:
    ropes = rewriter.calls(ops.rms_norm_rope.default)
    since = None
    while ropes:
        q = ropes.pop(0)
        fused = []
        for place, k in enumerate(ropes[: _NEAR - 1]):
            if _go_together(q, k):
                until = ropes[place + 1] if place + 1 < len(ropes) else None
                if fused := _fuse_two_or_three(rewriter, q, k, since, until):
                    ropes.remove(k)
                    break
        since = fused[-1] if fused else q


def _go_together(q: Node, k: Node) -> bool:
    if q.args[2:] != k.args[2:] or not _alike_but_heads(q, k):
        return False
    mine, its = dict(q.kwargs), dict(k.kwargs)
    if q.args[1] is None or k.args[1] is None:  # without a weight there are no options of one
        for options in (mine, its):
            options.pop("casting_mode", None)
            options.pop("weight_offset", None)
    return mine == its


def _alike_but_heads(a: Node, b: Node) -> bool:
    """But for one dimension before the last."""
    x, y = tensor_of(a), tensor_of(b)
    if x.dtype != y.dtype or x.device != y.device or x.dim() != y.dim():
        return False
    different = [not equal(i, j) for i, j in zip(x.shape, y.shape, strict=True)]
    return not different[-1] and sum(different) <= 1


def _fuse_two_or_three(
    rewriter: Rewriter, q: Node, k: Node, since: Node | None, until: Node | None
) -> list[Node]:
    """With the values' norm, between the rotations before and after: Inductor moves nodes to those
    that they read or that read them."""
    (q_x, q_weight, cos, sin, eps), (k_x, k_weight) = q.args, k.args[:2]
    options = dict(q.kwargs if q_weight is not None else k.kwargs)
    for node in rewriter.calls(ops.rms_norm.default):
        norm = as_norm(node)
        if norm is None or norm.weight is not None or norm.eps != eps:
            continue
        if since is not None and node < since or until is not None and until < node:
            continue
        if not _alike_but_heads(k, node):
            continue
        if options.get("across_heads") or not _alike_but_heads(q, node):
            continue
        target = ops.qkv_norm_rope.default
        args = (q_x, k_x, norm.x, q_weight, k_weight, cos, sin, eps)
        if fused := rewriter.fuse([q, k, node], target, *args, **options):
            return fused
    args = (q_x, k_x, q_weight, k_weight, cos, sin, eps)
    return rewriter.fuse([q, k], ops.qk_norm_rope.default, *args, **options)
