"""Finds norms. The walk starts at the inverse root, in whichever words it is written, goes back to
the tensor whose squares it is of, and forward to what a model makes of the product."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from torch_mlxnorm.compile.nodes import (
    VIEWS,
    alike,
    aten,
    both_ways,
    dtype_of,
    equal,
    factors,
    is_call,
    is_cast_to,
    is_number,
    is_ours,
    is_row,
    is_weight,
    only_user,
    other_of,
    same_shape,
    same_sizes,
    same_values,
    tensor_and_number,
    tensor_of,
    terms,
    viewed_rows,
    widened,
)
from torch_mlxnorm.compile.rewriting import Rewriter, ops


@dataclass(frozen=True)
class Root:
    """``1 / sqrt(mean(x**2, -1) + eps)``, or the square root of the same."""

    node: Node
    x: Node  # float32, as it is squared
    eps: float
    inverse: bool


@dataclass
class Norm:
    """A node that has the values of an operator."""

    end: Node
    x: Node
    weight: Node | None
    eps: float | None
    options: dict[str, Any] = field(default_factory=dict)
    gate: Node | None = None


def find_norms(rewriter: Rewriter) -> list[Norm]:
    """Every norm of the graph, in the order of their roots."""
    norms: list[Norm] = []
    for node in rewriter.graph.nodes:
        found = called_norm(node)
        if found is None and (root := _root(node)) is not None:
            found = norms_of(root)
        norms += [n for n in found or [] if rewriter.may_replace([n.end], [n.x, n.weight, n.gate])]
    return norms


def rewrite_norms(rewriter: Rewriter) -> list[Node]:
    """Replaces all that were found by ``rms_norm``."""
    new = []
    for norm in find_norms(rewriter):
        if norm.gate is None:
            target, inputs = ops.rms_norm.default, (norm.x,)
        else:
            target, inputs = ops.gated_rms_norm.default, (norm.x, norm.gate)
        call = rewriter.emit(norm.end, target, *inputs, norm.weight, norm.eps, **norm.options)
        rewriter.replace(norm.end, call)
        new.append(call)
    return new


def called_norm(node: Any) -> list[Norm] | None:
    """PyTorch's own, over the last dimension."""
    if not is_call(node, aten.rms_norm.default, aten._fused_rms_norm.default):
        return None
    x, shape, weight, eps = (*node.args, *[None] * (4 - len(node.args)))
    weight, eps = node.kwargs.get("weight", weight), node.kwargs.get("eps", eps)
    end = node
    if isinstance(shape, int):  # _fused_rms_norm before PyTorch 2.9: a number of dimensions
        shape = list(tensor_of(x).shape[-1:]) if shape == 1 and is_ours(x) else []
    elif node.target is aten._fused_rms_norm.default:
        end = only_user(node)
        if not is_call(end, operator.getitem) or end.args[1] != 0:
            return None  # the inverse rms is wanted as well
    if not is_ours(x) or len(shape) != 1 or not equal(shape[0], tensor_of(x).shape[-1]):
        return None
    if weight is not None and not is_row(weight, x):
        return None
    if not (eps is None or is_number(eps)) or dtype_of(end) != dtype_of(x):
        return None
    return [Norm(end, x, weight, eps)]


def _root(node: Any) -> Root | None:
    inverse = True
    if is_call(node, aten.rsqrt.default) or _is_power(node, -0.5):
        inside = node.args[0]
    elif is_call(node, aten.reciprocal.default) and _is_root(node.args[0]):
        inside = node.args[0].args[0]
    elif is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == -1 and _is_root(node.args[0]):
        inside = node.args[0].args[0]
    elif _is_root(node):
        inverse, inside = False, node.args[0]
    else:
        return None
    if (sum_ := tensor_and_number(terms(inside))) is None:
        return None
    mean, eps = sum_
    x = _squared(mean)
    if eps < 0 or x is None or dtype_of(node) != torch.float32:
        return None
    return Root(node, x, eps, inverse)


def _is_power(node: Any, exponent: float) -> bool:
    return is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == exponent


def _is_root(node: Any) -> bool:
    return is_call(node, aten.sqrt.default) or _is_power(node, 0.5)


def _squared(mean: Node) -> Node | None:
    """x, where mean is that of its squares over the last dimension, in float32 throughout."""
    if is_call(mean, aten.unsqueeze.default) and mean.args[1] in (-1, tensor_of(mean).dim() - 1):
        mean, keeps = mean.args[0], False
    else:
        keeps = True
    if is_call(mean, aten.mean.dim):
        squares = _reduced(mean, keeps)
    else:
        squares = _reduced(*_divided_sum(mean), keeps)
    if squares is None:
        return None
    if _is_power(squares, 2) or is_call(squares, aten.square.default):
        x = squares.args[0]
    elif (pair := factors(squares)) is not None and same_values(*pair):
        x = pair[0] if dtype_of(pair[0]) == torch.float32 else pair[1]
    else:
        return None
    return x if dtype_of(x) == dtype_of(squares) == torch.float32 else None


def _reduced(reduction: Any, keeps: bool) -> Node | None:
    """What is reduced over the last dimension alone, which stays as one of 1 if keeps."""
    if reduction is None:
        return None
    of, dims = (*reduction.args, None)[:2]
    keepdim = (
        reduction.args[2] if len(reduction.args) > 2 else reduction.kwargs.get("keepdim", False)
    )
    value = tensor_of(of)
    if value is None or keepdim is not keeps or dtype_of(reduction) != torch.float32:
        return None
    if not isinstance(dims, (list, tuple)) or len(dims) != 1 or not isinstance(dims[0], int):
        return None
    return of if value.dim() >= 1 and dims[0] % value.dim() == value.dim() - 1 else None


def _divided_sum(mean: Any) -> tuple[Node | None]:
    """A sum over the last dimension, if mean is that divided by its size."""
    if is_call(mean, aten.div.Tensor, aten.div.Scalar) and not mean.kwargs:
        total, size = mean.args
        times = False
    elif (scaled := tensor_and_number(factors(mean))) is not None:
        total, size = scaled
        times = True
    else:
        return (None,)
    if not is_call(total, aten.sum.dim_IntList) or not is_number(size):
        return (None,)
    value = tensor_of(total.args[0])
    if value is None or value.dim() < 1 or not isinstance(value.shape[-1], int):
        return (None,)
    dim = value.shape[-1]
    return (total if dim and size == (1 / dim if times else dim) else None,)


def norms_of(root: Root) -> list[Norm] | None:
    """What a model makes of x and its root. All of it is an operator's or nothing: otherwise the
    chain would have to stay beside the operator."""
    products = _products(root)
    if products is None:
        return None
    norms: list[Norm] = []
    if (gated := _gated_before(root, products)) is not None:
        return gated
    x = widened(root.x)
    if not is_ours(x):
        return None
    for product in products:
        found = _float32_ends(product, x) if dtype_of(x) == torch.float32 else _ends(product, x)
        if found is None:
            return None
        norms += found
    return _with_eps(norms, root)


def _with_eps(norms: list[Norm], root: Root) -> list[Norm]:
    for norm in norms:
        norm.eps = root.eps
    return norms


def _gated_before(root: Root, products: list[Node]) -> list[Norm] | None:
    """The norm of ``x * activation(gate)``, in groups of a row if it is a view."""
    whole, group = root.x, 0
    if is_call(whole, *VIEWS) and viewed_rows(whole) is None:
        whole, group = whole.args[0], tensor_of(whole).shape[-1]
        products = [view for product in products for view in product.users]
        back = all(is_call(p, *VIEWS) and same_shape(p, whole) for p in products)
        if not isinstance(group, int) or not back or not products:
            return None
        if not _cuts_rows(root.x, whole):
            return None
    for factor, activated in both_ways(factors(whole)):
        gate, activation = activation_of(activated)
        x = widened(factor)
        if not is_ours(x) or gate is None or not alike(x, gate) or not same_shape(x, whole):
            continue
        single = dtype_of(x) == torch.float32
        norms: list[Norm] = []
        for product in products:
            found = _float32_ends(product, x) if single else _ends(product, x)
            if found is None or any(norm.gate is not None for norm in found):
                return None
            norms += found
        for norm in norms:
            norm.gate = gate
            norm.options |= {"activation": activation} if activation != "silu" else {}
            norm.options |= {"group_size": group} if group else {}
        return _with_eps(norms, root)
    return None


def _cuts_rows(view: Node, whole: Node) -> bool:
    """Whether the last dimension becomes two."""
    old, new = tensor_of(whole).shape, tensor_of(view).shape
    return (
        len(new) == len(old) + 1
        and same_sizes(new[:-2], old[:-1])
        and equal(new[-2] * new[-1], old[-1])
    )


def activation_of(node: Any) -> tuple[Node | None, str]:
    """What is activated in float32, in its own dtype, and by which function; also as Inductor
    writes it."""
    found: tuple[Any, str] = (None, "")
    if is_call(node, aten.silu.default):
        found = node.args[0], "silu"
    elif is_call(node, aten.sigmoid.default):
        found = node.args[0], "sigmoid"
    elif is_call(node, aten.gelu.default) and node.kwargs.get("approximate") == "tanh":
        found = node.args[0], "gelu_tanh"
    elif is_call(node, aten.div.Tensor) and not node.kwargs:
        found = node.args[0], "silu"
        one = tensor_and_number(terms(node.args[1]))
        exp = one[0] if one is not None and one[1] == 1 else None
        neg = exp.args[0] if is_call(exp, aten.exp.default) else None
        if not is_call(neg, aten.neg.default) or not same_values(neg.args[0], node.args[0]):
            return None, ""
    elif (pair := factors(node)) is not None:
        for gate, sigmoid in both_ways(pair):
            if is_call(sigmoid, aten.sigmoid.default) and same_values(sigmoid.args[0], gate):
                found = gate, "silu"
    if found[0] is None or dtype_of(node) != torch.float32 or dtype_of(found[0]) != torch.float32:
        return None, ""
    return widened(found[0]), found[1]


def _products(root: Root) -> list[Node] | None:
    products: list[Node] = []
    waiting = [root.node]
    while waiting:
        scale = waiting.pop()
        for user in scale.users:
            pair = factors(user)
            scaled = tensor_and_number(pair)
            if root.inverse and scaled is not None and scaled[1] == 1:
                waiting.append(user)  # 1 / t is t.reciprocal() * 1
                continue
            if not root.inverse and is_call(user, aten.reciprocal.default):
                continue  # which is a root of its own
            if not root.inverse and _is_power(user, -1):
                continue
            if root.inverse:
                x = other_of(pair, scale)
            else:
                x = None
                if is_call(user, aten.div.Tensor) and not user.kwargs and user.args[1] is scale:
                    x = user.args[0]
            if not isinstance(x, Node) or not same_values(x, root.x):
                return None
            if dtype_of(user) != torch.float32 or not same_shape(user, root.x):
                return None
            products.append(user)
    return products


def _weight(factor: Any, x: Node) -> tuple[Node, float] | None:
    """A weight that multiplies in float32, and what is added to it."""
    offset = 0.0
    if (moved := tensor_and_number(terms(factor))) is not None:
        if dtype_of(factor) == torch.float32:
            factor, offset = moved
    weight = widened(factor)
    return (weight, offset) if is_weight(weight, x) else None


def _options(weight: Node | None, offset: float, llama: bool = False) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if weight is not None and offset:
        options["weight_offset"] = offset
    if llama:
        options["casting_mode"] = "llama"
    return options


def _float32_ends(product: Node, x: Node) -> list[Norm]:
    norms = []
    plain = not product.users
    for user in product.users:
        found = _weight(other_of(factors(user), product), x)
        if found is None or dtype_of(user) != torch.float32 or not same_shape(user, x):
            plain = True
        else:
            norms.append(Norm(user, x, found[0], None, _options(*found)))
    # The product itself comes last: what it is needed for has been replaced by then.
    return [*norms, Norm(product, x, None, None)] if plain else norms


def _ends(product: Node, x: Node) -> list[Norm] | None:
    """Of 16-bit x: each use of the product must come back to the dtype of x."""
    dtype = dtype_of(x)
    norms: list[Norm] = []
    for user in product.users:
        if is_cast_to(user, dtype):
            norms += _llama_ends(user, x)
            continue
        found = _weight(other_of(factors(user), product), x)
        if found is None or not same_shape(user, x) or dtype_of(user) != torch.float32:
            return None
        if (gated := _gated_after(user, x, found)) is not None:
            norms.append(gated)
            continue
        if not user.users or not all(is_cast_to(end, dtype) for end in user.users):
            return None
        norms += [Norm(end, x, found[0], None, _options(*found)) for end in user.users]
    return norms or None


def _gated_after(weighed: Node, x: Node, found: tuple[Node, float]) -> Norm | None:
    """A norm in float32 times an activated gate, rounded once."""
    product = only_user(weighed)
    gate, activation = activation_of(other_of(factors(product), weighed))
    if product is None or gate is None or not alike(x, gate) or not same_shape(product, x):
        return None
    end = only_user(product)
    if end is None or not is_cast_to(end, dtype_of(x)) or dtype_of(product) != torch.float32:
        return None
    options = _options(*found) | {"norm_before_gate": True}
    options |= {"activation": activation} if activation != "silu" else {}
    return Norm(end, x, found[0], None, options, gate)


def _llama_ends(rounded: Node, x: Node) -> list[Norm]:
    """Of a product that was rounded: where a weight multiplies it, and the product itself if that
    is not all."""
    dtype = dtype_of(x)
    norms, plain = [], not rounded.users
    for user in rounded.users:
        factor = other_of(factors(user), rounded)
        end = user
        found = None
        if is_weight(factor, x) and same_shape(user, x):
            if dtype_of(user) == dtype and dtype_of(factor) == dtype:
                found = factor, 0.0
            elif (end := only_user(user)) is not None and is_cast_to(end, dtype):
                found = _weight(factor, x) if dtype_of(user) == torch.float32 else None
        if found is None:
            plain = True
        else:
            norms.append(Norm(end, x, found[0], None, _options(*found, llama=True)))
    return [*norms, Norm(rounded, x, None, None)] if plain else norms


def as_norm(node: Any) -> Norm | None:
    """A call of ``rms_norm`` without bias and activation."""
    if not is_call(node, ops.rms_norm.default):
        return None
    options = dict(node.kwargs)
    if not set(options) <= {"weight_offset", "casting_mode"}:
        return None
    x, weight, eps = (*node.args, 1e-6)[:3]
    return Norm(node, x, weight, eps, options)
