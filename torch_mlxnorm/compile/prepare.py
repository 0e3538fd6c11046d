"""What is done to a graph of Dynamo, before AOTAutograd decomposes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import guard_scalar

from torch_mlxnorm.compile.nodes import DEVICES, DTYPES, is_number

_RMS_NORM = (torch.rms_norm, torch.nn.functional.rms_norm)
_OURS = torch.ops.mlxnorm.rms_norm.default
_SUMS = ("add", "add_", "iadd")
_ROOTS = ("rsqrt", "rsqrt_", "sqrt", "sqrt_", "pow", "pow_")
_MODES = (torch._C._set_grad_enabled, torch.amp.autocast_mode._enter_autocast)


def prepare(graph: Graph) -> bool:
    """Makes a graph of Dynamo ready to be rewritten, where no gradient will be asked for. Returns
    whether it changed."""
    if not _is_inference(graph):
        return False
    _settle_eps(graph)
    return _retarget(graph) > 0


def _retarget(graph: Graph) -> int:
    """Puts ``rms_norm`` in the place of PyTorch's."""
    found = 0
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _RMS_NORM:
            arguments = _arguments(*node.args, **node.kwargs)
            if arguments is not None:
                node.target, node.args, node.kwargs = _OURS, arguments, {}
                found += 1
    return found


def _settle_eps(graph: Graph) -> None:
    """With ``dynamic=True`` a float such as eps is an input of the graph, and the operators take
    numbers. This adds the guard that it stays the same, where a root is taken of a sum with it."""
    for node in graph.nodes:
        value = _value(node)
        if isinstance(value, torch.SymFloat) and any(
            _name(add) in _SUMS and any(_name(root) in _ROOTS for root in add.users)
            for add in node.users
        ):
            guard_scalar(value)


def _name(node: Node) -> str:
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))


def _is_inference(graph: Graph) -> bool:
    """Whether the graph is run without gradients, and in the dtypes that it shows."""
    values = [_value(node) for node in graph.nodes]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
        return False
    devices = {value.device.type for value in tensors}
    if any(torch.amp.is_autocast_available(d) and torch.is_autocast_enabled(d) for d in devices):
        return False
    return not any(node.target in _MODES for node in graph.nodes)


def _value(node: Any) -> Any:
    return node.meta.get("example_value") if isinstance(node, Node) else None


def _arguments(
    input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> tuple[Any, ...] | None:
    x, w = _value(input), _value(weight)
    if not isinstance(x, Tensor) or x.dtype not in DTYPES or x.device.type not in DEVICES:
        return None
    if x.layout != torch.strided or x.dim() < 1 or not (eps is None or is_number(eps)):
        return None
    if not isinstance(normalized_shape, (tuple, list)) or not isinstance(x.shape[-1], int):
        return None
    if not x.shape[-1] or list(normalized_shape) != [x.shape[-1]]:
        return None
    if weight is not None and not (
        isinstance(w, Tensor)
        and w.dtype in DTYPES
        and w.device == x.device
        and list(w.shape) == [x.shape[-1]]
    ):
        return None
    return input, weight, eps
