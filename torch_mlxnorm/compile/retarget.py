"""Calls of PyTorch's rms_norm in a graph of Dynamo, before AOTAutograd decomposes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from torch_mlxnorm.compile.nodes import DEVICES, DTYPES, is_number

_RMS_NORM = (torch.rms_norm, torch.nn.functional.rms_norm)
_MODES = (torch._C._set_grad_enabled, torch.amp.autocast_mode._enter_autocast)


def retarget(graph: Graph) -> int:
    """Puts ``rms_norm`` in their place where no gradient will be asked for; returns how many."""
    calls = [n for n in graph.nodes if n.op == "call_function" and n.target in _RMS_NORM]
    if not calls or not _is_inference(graph):
        return 0
    arguments = [_arguments(*node.args, **node.kwargs) for node in calls]
    for node, found in zip(calls, arguments, strict=True):
        if found is not None:
            node.target, node.args, node.kwargs = torch.ops.mlxnorm.rms_norm.default, found, {}
    return sum(found is not None for found in arguments)


def _is_inference(graph: Graph) -> bool:
    """Whether the graph is run without gradients and in the dtypes that it shows."""
    values = [_value(node) for node in graph.nodes]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
        return False
    if any(torch.is_autocast_enabled(device) for device in {v.device.type for v in tensors}):
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
