"""Norms of heads that are rotated: ``y * cos + cat(-y1, y0) * sin``, where y is a norm or another
layout of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from torch_mlxnorm.compile.nodes import (
    DTYPES,
    VIEWS,
    aten,
    both_ways,
    broadcasts,
    equal,
    factors,
    is_call,
    is_cast_to,
    is_row,
    only_user,
    same_sizes,
    tensor_of,
    terms,
    viewed_rows,
)
from torch_mlxnorm.compile.norms import Norm, as_norm
from torch_mlxnorm.compile.rewriting import Rewriter, ops


@dataclass
class Rotation:
    """``end`` is the rotated ``y``, whose last dimension may have a part that is not rotated."""

    end: Node
    y: Node
    cos: Node
    sin: Node
    rounding: str


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
        if node._erased or (rotation := _rotation(node)) is None:
            continue
        if (heads := _heads(rotation.y)) is not None:
            _rotate(rewriter, rotation, heads, tables)
    _side_by_side(rewriter)


def _rotation(end: Any) -> Rotation | None:
    pair = terms(end)
    if pair is None or not all(isinstance(part, Node) for part in pair):
        return None
    for plain, turned in (pair, pair[::-1]):
        for y, cos in both_ways(factors(plain)):
            for half_turn, sin in both_ways(factors(turned)):
                if not all(isinstance(n, Node) for n in (y, cos, half_turn, sin)):
                    continue
                if not _is_half_turn(half_turn, y) or not broadcasts(cos, y):
                    continue
                if not broadcasts(sin, y) or any(len(n.users) != 1 for n in (plain, turned)):
                    continue
                parts = {plain, *half_turn.all_input_nodes}
                parts |= {p for n in half_turn.all_input_nodes for p in n.all_input_nodes}
                if set(y.users) - parts or half_turn.users.keys() != {turned}:
                    continue
                if (found := _finished(end, y, cos, sin, plain, turned)) is not None:
                    return found
    return None


def _finished(
    end: Node, y: Node, cos: Node, sin: Node, plain: Node, turned: Node
) -> Rotation | None:
    """How it is rounded, and with the part of a row that is not rotated."""
    value = tensor_of(y)
    dtypes = {tensor_of(node).dtype for node in (plain, turned, end)}
    if dtypes == {value.dtype}:
        rounding = "products"
    elif dtypes == {torch.float32} and value.dtype in DTYPES:
        rounding, cast = "once", only_user(end)
        if cast is None or not is_cast_to(cast, value.dtype):
            return None
        end = cast
    else:
        return None
    if not same_sizes(tensor_of(end).shape, value.shape):
        return None
    if is_call(y, aten.slice.Tensor):
        whole = y.args[0]
        joined, size = only_user(end), value.shape[-1]
        if not is_call(joined, aten.cat.default) or len(joined.args[0]) != 2:
            return None
        front, rest = joined.args[0]
        dim = joined.args[1] if len(joined.args) > 1 else 0
        if front is not end or dim not in (-1, value.dim() - 1) or only_user(rest) is not joined:
            return None
        total = tensor_of(whole).shape[-1]
        if not isinstance(total, int) or set(whole.users) != {y, rest}:
            return None
        if not _is_slice(y, whole, 0, size) or not _is_slice(rest, whole, size, total):
            return None
        return Rotation(joined, whole, cos, sin, rounding)
    return Rotation(end, y, cos, sin, rounding)


def _is_half_turn(node: Any, y: Node) -> bool:
    """``cat(-y1, y0)`` of the halves of y."""
    value = tensor_of(y)
    if not is_call(node, aten.cat.default) or len(node.args[0]) != 2 or value is None:
        return False
    size = value.shape[-1]
    if not isinstance(size, int) or size % 2 or size == 0:
        return False
    if (node.args[1] if len(node.args) > 1 else 0) not in (-1, value.dim() - 1):
        return False
    negated, low = node.args[0]
    if not is_call(negated, aten.neg.default) or len(negated.users) != 1:
        return False
    high = negated.args[0]
    if len(low.users) != 1 or len(high.users) != 1:
        return False
    return _is_slice(low, y, 0, size // 2) and _is_slice(high, y, size // 2, size)


def _is_slice(node: Any, of: Node, start: int, end: int) -> bool:
    """Of the last dimension, with step 1."""
    if not is_call(node, aten.slice.Tensor) or node.args[0] is not of or node.kwargs:
        return False
    dims, size = tensor_of(of).dim(), tensor_of(of).shape[-1]
    dim, first, last, step = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])
    first, last = first or 0, size if last is None else last
    if not isinstance(first, int) or not isinstance(last, int) or first < 0:
        return False
    last = size + last if last < 0 else min(last, size)
    return dim % dims == dims - 1 and step == 1 and (first, last) == (start, end)


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
    rewriter: Rewriter, rotation: Rotation, heads: Heads, tables: dict[tuple[Any, ...], Node]
) -> None:
    norm, end = heads.norm, rotation.end
    if not rewriter.may_replace([end], [norm.x, norm.weight, rotation.cos, rotation.sin]):
        return
    dims = tensor_of(rotation.y).dim()
    back = [heads.order.index(i) for i in range(dims)]
    cos, sin = (_table(rewriter, t, dims, back, tables) for t in (rotation.cos, rotation.sin))
    options = norm.options | {"full_tables": True, "rope_rounding": rotation.rounding}
    options["round_intermediates"] = True
    x = norm.x
    if heads.split is not None:
        x = rewriter.emit(end, aten.reshape.default, x, heads.split.args[1])
        options["across_heads"] = True
    call = rewriter.emit(
        end, ops.rms_norm_rope.default, x, norm.weight, cos, sin, norm.eps, **options
    )
    if back != list(range(dims)):
        call = rewriter.emit(end, aten.permute.default, call, heads.order)
    rewriter.replace(end, call)


def _table(
    rewriter: Rewriter, table: Node, dims: int, order: list[int], known: dict[tuple[Any, ...], Node]
) -> Node:
    """In the order of the norm's dimensions; the same node for the same table."""
    table = _once(table, known)
    if order == list(range(dims)):
        return table
    key = (table, *order)
    if key not in known:
        place = table.next
        while place.op in ("placeholder", "get_attr"):
            place = place.next
        whole = table
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


def _side_by_side(rewriter: Rewriter) -> None:
    ropes = rewriter.calls(ops.rms_norm_rope.default)
    place, since = 0, None
    while place + 1 < len(ropes):
        q, k = ropes[place], ropes[place + 1]
        until = ropes[place + 2] if place + 2 < len(ropes) else None
        fused = _fuse_two_or_three(rewriter, q, k, since, until) if _go_together(q, k) else []
        since = fused[-1] if fused else q
        place += 2 if fused else 1


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
