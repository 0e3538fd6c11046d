"""Makes larger operators of norms and what stands around them, the largest first. All are called
with ``round_intermediates``, so that they give the bits of what they replace."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from torch_mlxnorm.compile.nodes import (
    DTYPES,
    alike,
    aten,
    both_ways,
    broadcasts,
    cast_source,
    dtype_of,
    equal,
    factors,
    is_call,
    is_cast_to,
    is_row,
    only_user,
    other_of,
    same_shape,
    same_sizes,
    tensor_and_number,
    tensor_of,
    terms,
    viewed_rows,
)
from torch_mlxnorm.compile.norms import Norm, activation_of, as_norm
from torch_mlxnorm.compile.rewriting import Rewriter, ops


def fuse(rewriter: Rewriter) -> list[Node]:
    """Returns the nodes that it put into the graph."""
    new: list[Node] = []
    for step in (_end_of_layer, _post_norm, _pre_norm, _triple, _gated, _modulated, _scaled):
        for node in _norm_calls(rewriter):
            if not node._erased and (norm := as_norm(node)) is not None:
                new += step(rewriter, norm)
    for node in rewriter.calls(ops.channel_rms_norm.default):
        new += _activated_channels(rewriter, node)
    return [node for node in new if not node._erased]


def _norm_calls(rewriter: Rewriter) -> list[Node]:
    return rewriter.calls(ops.rms_norm.default)


def _activated_channels(rewriter: Rewriter, norm: Node) -> list[Node]:
    """The silu of a norm of channels, also of a norm whose channels have been moved since."""
    moves: list[Node] = []
    user = only_user(norm)
    while is_call(user, aten.permute.default):
        moves.append(user)
        user = only_user(user)
    if not is_call(user, aten.silu.default) or norm.kwargs.get("silu"):
        return []
    if not rewriter.may_replace([user], (norm.args, norm.kwargs)):
        return []
    new = [rewriter.emit(user, norm.target, *norm.args, **(norm.kwargs | {"silu": True}))]
    for move in moves:
        new.append(rewriter.emit(user, move.target, new[-1], *move.args[1:]))
    rewriter.replace(user, new[-1])
    return new


def options_of(*norms: Norm) -> dict[str, Any] | None:
    """What norms in one operator have in common. Without a weight a norm has no options, and the
    casting modes are the same in float32."""
    kinds = [norm.options for norm in norms if norm.weight is not None]
    if any(norm.eps != norms[0].eps for norm in norms):
        return None
    if any(kind != kinds[0] for kind in kinds):
        return None
    return dict(kinds[0]) if kinds else {}


def _one_weight(norm: Norm) -> bool:
    return norm.weight is None or is_row(norm.weight, norm.x)


def _scales(scale: Any, of: Node) -> bool:
    """A tensor of ``[dim]`` or one element that multiplies without changing the dtype."""
    value = tensor_of(scale)
    if value is None or value.dtype != dtype_of(of) or value.device != tensor_of(of).device:
        return False
    one = value.dim() <= tensor_of(of).dim() and all(equal(size, 1) for size in value.shape)
    return one or is_row(scale, of)


def _sum_of(end: Any, part: Node) -> Node | None:
    """The tensor that end adds to part, of the same shape, dtype and device."""
    other = other_of(terms(end), part)
    return other if isinstance(other, Node) and alike(end, part, other) else None


def _scaled_by(end: Any, part: Node) -> Node | None:
    scale = other_of(factors(end), part)
    return scale if isinstance(scale, Node) and alike(end, part) and _scales(scale, end) else None


def _multiplies(factor: Any, product: Any, part: Node) -> bool:
    """Whether factor, which may be broadcast, multiplies part without changing its shape or dtype:
    a scale, or the gate of a branch."""
    if not isinstance(factor, Node) or not alike(product, part):
        return False
    if dtype_of(factor) != dtype_of(part):
        return False
    return _scales(factor, part) or broadcasts(factor, part)


def _modulation(norm: Norm) -> tuple[Node, dict[str, Any]]:
    """Where ``N * (1 + scale) + shift`` ends, and its options, all of it in the norm's dtype; just
    the norm, where nothing modulates it."""
    product = only_user(norm.end)
    scale = other_of(factors(product), norm.end)
    if not _multiplies(scale, product, norm.end):
        return norm.end, {}
    options: dict[str, Any] = {"scale": scale, "scale_offset": 0.0}
    moved = tensor_and_number(terms(scale))
    if moved is not None and only_user(scale) is product and dtype_of(moved[0]) == dtype_of(scale):
        options = {"scale": moved[0], "scale_offset": moved[1]}
    total = only_user(product)
    shift = other_of(terms(total), product)
    if _multiplies(shift, total, product):
        return total, options | {"shift": shift}
    return product, options


def _modulated_next(norm: Norm) -> tuple[Node, dict[str, Any]]:
    """As options of operators that norm a sum."""
    end, options = _modulation(norm)
    return end, {f"next_{name}": value for name, value in options.items()}


def _following(stream: Node, *first: Norm) -> list[Norm]:
    """Norms of stream that go with first and with one another, also of views of its rows."""
    found: list[Norm] = []
    for node in _ordered(stream):
        norm = as_norm(node)
        if norm is not None and _one_weight(norm) and options_of(*first, *found, norm) is not None:
            found.append(norm)
    return found


def _three(rewriter: Rewriter, stream: Node, *first: Norm) -> list[Norm]:
    """Three norms of stream that go with first and with one another, if there are as many."""
    found = _following(stream, *first)
    apart: list[Norm] = []
    if len(found) < 3:
        # One that is rounded before its weight is one without a weight, and a product: the router
        # of Gemma 4 beside norms that are not.
        ends = {norm.end for norm in found}
        for node in _ordered(stream):
            norm = as_norm(node)
            if norm is None or node in ends or not _is_product(norm):
                continue
            if options_of(*first, *found, Norm(norm.end, norm.x, None, norm.eps)) is not None:
                apart.append(norm)
    if len(found) + len(apart) < 3 or len(found) < 2:
        return []
    apart = [_taken_apart(rewriter, norm) for norm in apart[: 3 - len(found)]]
    return [_unviewed(rewriter, norm, stream) for norm in (found + apart)[:3]]


def _is_product(norm: Norm) -> bool:
    rounds = norm.options == {"casting_mode": "llama"}
    return rounds and dtype_of(norm.weight) == dtype_of(norm.x) and _one_weight(norm)


def _taken_apart(rewriter: Rewriter, norm: Norm) -> Norm:
    call = rewriter.emit(norm.end, ops.rms_norm.default, norm.x, None, norm.eps)
    rewriter.replace(norm.end, rewriter.emit(norm.end, aten.mul.Tensor, call, norm.weight))
    return Norm(call, norm.x, None, norm.eps)


def _ordered(stream: Node) -> list[Node]:
    """The norms of stream, and not those that it is a weight of."""
    users = set(stream.users)
    for user in stream.users:
        if viewed_rows(user) is stream:
            users |= set(user.users)
    return sorted(
        user
        for user in users
        if (norm := as_norm(user)) is not None
        and (norm.x is stream or viewed_rows(norm.x) is stream)
    )


def _unviewed(rewriter: Rewriter, norm: Norm, stream: Node) -> Norm:
    """The norm of a view as the view of a norm: rows are the same."""
    if norm.x is stream:
        return norm
    view = norm.x
    call = rewriter.emit(
        norm.end, ops.rms_norm.default, stream, norm.weight, norm.eps, **norm.options
    )
    rows = rewriter.emit(norm.end, aten.reshape.default, call, view.args[1])
    rewriter.replace(norm.end, rows)
    return Norm(call, stream, norm.weight, norm.eps, norm.options)


def _end_of_layer(rewriter: Rewriter, norm: Norm) -> list[Node]:
    """``(residual + N(attn_out + N(moe_accum, w2), w3)) * layer_scalar``, from its first norm."""
    total = only_user(norm.end)
    attn_out = _sum_of(total, norm.end)
    if total is None or attn_out is None:
        return []
    if as_norm(attn_out) is not None and norm.end < attn_out:
        return []  # of two norms the later one, which is that of the experts
    for user in total.users:
        last = as_norm(user)
        if last is None or last.x is not total or (add := only_user(last.end)) is None:
            continue
        residual, end = _sum_of(add, last.end), only_user(add)
        scale = _scaled_by(end, add)
        options = options_of(norm, last)
        if residual is None or scale is None or options is None:
            continue
        if not (_weighs(norm) and _weighs(last)):
            continue
        rest = (attn_out, residual, norm.weight, last.weight, scale, norm.eps)
        options["round_intermediates"] = True
        if (experts := _weighted_sum(rewriter, norm.x, total)) is not None:
            target = ops.fused_moe_wsum_post_ff_norm2_endlayer.default
            if new := rewriter.fuse([total, end], target, *experts, *rest, **options):
                return new
        target = ops.fused_post_ff_norm2_endlayer.default
        arguments = (attn_out, norm.x, *rest[1:])
        if new := rewriter.fuse([total, end], target, *arguments, **options):
            return new
    return []


def _weighs(norm: Norm) -> bool:
    return norm.weight is not None and is_row(norm.weight, norm.x)


def _weighted_sum(rewriter: Rewriter, moe_accum: Node, place: Node) -> tuple[Node, Node] | None:
    """Experts and their weights, if moe_accum is their sum in float32, rounded once to 16 bits,
    which hides that products are not rounded before they are added. What takes rows of the products
    apart or puts them in another order does so with their factors."""
    dtype, rounded = dtype_of(moe_accum), moe_accum
    if dtype == torch.float32:
        return None
    while (view := viewed_rows(rounded)) is not None and only_user(rounded) is not None:
        rounded = view
    total = cast_source(rounded)
    if not is_call(total, aten.sum.dim_IntList) or dtype_of(total) != torch.float32:
        return None
    summed, dims, keepdim = (*total.args, False)[:3]
    shape = tensor_of(summed).shape
    if keepdim or len(shape) < 2 or len(dims) != 1 or dims[0] % len(shape) != len(shape) - 2:
        return None
    steps: list[Node] = []
    products = summed
    while factors(products) is None:
        if not (_selects_rows(products) or viewed_rows(products) is not None):
            return None
        steps.append(products)
        products = products.args[0]
    if dtype_of(products) != torch.float32 or any(
        only_user(node) is None for node in (rounded, total, *steps, products)
    ):
        return None
    for experts, weights in both_ways(factors(products)):
        experts = experts if dtype_of(experts) == dtype else cast_source(experts)
        if dtype_of(experts) != dtype or not same_shape(experts, products):
            continue
        last = tensor_of(products).dim() - 1
        if not is_call(weights, aten.unsqueeze.default) or weights.args[1] not in (-1, last):
            continue
        routing = weights.args[0]
        value = tensor_of(routing)
        if (
            value is None
            or value.dtype not in DTYPES
            or value.device != tensor_of(products).device
            or not same_sizes(value.shape, tensor_of(products).shape[:-1])
        ):
            continue
        for step in reversed(steps):
            if _selects_rows(step):
                experts = rewriter.emit(place, step.target, experts, *step.args[1:])
                routing = rewriter.emit(place, step.target, routing, *step.args[1:])
        rows = [*rewriter.sizes(moe_accum, place)[:-1], shape[-2]]
        if not isinstance(shape[-2], int) or not isinstance(shape[-1], int):
            return None
        experts = rewriter.emit(place, aten.reshape.default, experts, [*rows, shape[-1]])
        routing = rewriter.emit(place, aten.reshape.default, routing, rows)
        return experts, routing
    return None


def _selects_rows(node: Any) -> bool:
    """Rows of a matrix in another order, by their numbers."""
    if not is_call(node, aten.index.Tensor) or len(node.args[1]) != 1:
        return False
    numbers, matrix = tensor_of(node.args[1][0]), tensor_of(node.args[0])
    integers = numbers is not None and numbers.dtype in (torch.int64, torch.int32)
    return integers and numbers.dim() == 1 and matrix.dim() == 2


def _residual_of(end: Any, part: Node) -> Node | None:
    """The residual stream to which end adds part: of its dtype, or float32 beside 16 bits."""
    other = other_of(terms(end), part)
    if not isinstance(other, Node) or not same_shape(other, part) or not alike(end, other):
        return None
    if dtype_of(other) not in (dtype_of(part), torch.float32):
        return None
    return other if tensor_of(other).device == tensor_of(part).device else None


def _post_norm(rewriter: Rewriter, norm: Norm) -> list[Node]:
    """A norm that is added to the residual stream, with what is made of the sum."""
    branch, gate = norm.end, None
    product = only_user(branch)
    if _multiplies(other_of(factors(product), branch), product, branch):
        branch, gate = product, other_of(factors(product), branch)
    add = only_user(branch)
    residual = _residual_of(add, branch)
    if add is None or residual is None or not _one_weight(norm):
        return []
    stream, scale = add, None
    if (user := only_user(add)) is not None and (scale := _scaled_by(user, add)) is not None:
        stream = user
    options = {"round_intermediates": True}
    if scale is not None:
        options["scale"] = scale
    if gate is not None:
        # An activation of it, shared by many rows, stays what it is: its last bits are the model's.
        options["gate"] = gate
    if dtype_of(stream) == dtype_of(norm.x):
        three = []
        if scale is None and gate is None and norm.weight is not None:
            three = _three(rewriter, stream, norm)
        if three:
            target = ops.fused_post_attn_triple_norm.default
            weights = [n.weight for n in three]
            common = options_of(norm, *three) | options
            olds = [stream, *[n.end for n in three]]
            args = (residual, norm.x, norm.weight, *weights, norm.eps)
            if new := rewriter.fuse(olds, target, *args, **common):
                return new
        if following := _following(stream, norm):
            after = _unviewed(rewriter, following[0], stream)
            target = ops.rms_norm_add_rms_norm.default
            args = (norm.x, residual, norm.weight, after.weight, norm.eps)
            end, modulation = _modulated_next(after)
            common = options_of(norm, after) | options | modulation
            if new := rewriter.fuse([stream, end], target, *args, **common):
                return new
    common = options_of(norm) | options
    args = (norm.x, residual, norm.weight, norm.eps)
    return rewriter.fuse([stream], ops.rms_norm_add.default, *args, **common)


def _pre_norm(rewriter: Rewriter, norm: Norm) -> list[Node]:
    """A sum of the residual stream, each with a factor perhaps, or the branch with a gate, and its
    norm, which may be modulated."""
    stream = norm.x
    stream = viewed_rows(stream) if terms(stream) is None else stream
    pair = terms(stream)
    if pair is None or not all(isinstance(n, Node) for n in pair) or not alike(stream, *pair):
        return []
    if not _one_weight(norm) or len(_following(stream)) >= 3:
        return []  # three norms of one stream are read once
    if _gated_branch(pair[0]) is None:
        pair = pair[::-1] if _gated_branch(pair[1]) is not None else pair
    (x, alpha), (residual, beta) = (_times(part) for part in pair)
    factors_ = {name: f for name, f in (("alpha", alpha), ("beta", beta)) if f != 1.0}
    if (gated := _gated_branch(x)) is not None and alpha == 1.0:
        x, factors_["gate"] = gated
    norm = _unviewed(rewriter, norm, stream)
    end, modulation = _modulated_next(norm)
    options = norm.options | factors_ | modulation | {"round_intermediates": True}
    target = ops.add_rms_norm.default
    args = (x, residual, norm.weight, norm.eps)
    return rewriter.fuse([end, stream], target, *args, **options)


def _gated_branch(part: Node) -> tuple[Node, Node] | None:
    """A branch and its gate, of which part is the product, for this sum alone."""
    if only_user(part) is None:
        return None
    for branch, gate in both_ways(factors(part)):
        if isinstance(branch, Node) and _multiplies(gate, part, branch):
            return branch, gate
    return None


def _times(part: Node) -> tuple[Node, float]:
    """A tensor and the number that multiplies it, for this sum alone."""
    scaled = tensor_and_number(factors(part))
    if scaled is None or only_user(part) is None or not alike(part, scaled[0]):
        return part, 1.0
    return scaled


def _triple(rewriter: Rewriter, norm: Norm) -> list[Node]:
    stream = viewed_rows(norm.x) or norm.x
    if not (three := _three(rewriter, stream)):
        return []
    args = (stream, *[n.weight for n in three], norm.eps)
    options = options_of(*three)
    return rewriter.fuse([n.end for n in three], ops.rms_norm_triple.default, *args, **options)


def _gated(rewriter: Rewriter, norm: Norm) -> list[Node]:
    """A norm times a gate that is activated in float32, the product rounded."""
    product = only_user(norm.end)
    gate, activation = activation_of(other_of(factors(product), norm.end))
    if product is None or gate is None or not alike(norm.x, gate) or not _one_weight(norm):
        return []
    end = product
    if dtype_of(norm.x) != torch.float32:
        end = only_user(product)
        if end is None or not is_cast_to(end, dtype_of(norm.x)):
            return []
    if dtype_of(product) != torch.float32 or not same_shape(product, norm.x):
        return []
    options = norm.options | {"norm_before_gate": True, "round_intermediates": True}
    options |= {"activation": activation} if activation != "silu" else {}
    args = (norm.x, gate, norm.weight, norm.eps)
    return rewriter.fuse([end], ops.gated_rms_norm.default, *args, **options)


def _modulated(rewriter: Rewriter, norm: Norm) -> list[Node]:
    """A norm with a scale, which has an offset, or with a scale and a shift."""
    end, options = _modulation(norm)
    if not options or (options["scale_offset"] == 0.0 and "shift" not in options):
        return []
    args = (norm.x, norm.weight, options.pop("scale"), options.pop("shift", None), norm.eps)
    options |= norm.options | {"round_intermediates": True}
    return rewriter.fuse([end], ops.rms_norm_modulate.default, *args, **options)


def _scaled(rewriter: Rewriter, norm: Norm) -> list[Node]:
    """A norm times a tensor."""
    end = only_user(norm.end)
    scale = other_of(factors(end), norm.end)
    if not _multiplies(scale, end, norm.end):
        return []
    options = norm.options | {"round_intermediates": True}
    args = (norm.x, norm.weight, scale, norm.eps)
    return rewriter.fuse([end], ops.rms_norm_mul.default, *args, **options)
