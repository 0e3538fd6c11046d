"""Graphs for the tests of torch_mlxnorm.compile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import aot_function, make_boxed_func
from torch.fx import GraphModule, Node

from torch_mlxnorm.compile.graph import rewrite_graph


def is_op(node: Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith("mlxnorm.")


def ops_of(graph: GraphModule) -> dict[str, int]:
    """How often each operator is called."""
    names = [str(n.target).split(".")[1] for n in graph.graph.nodes if is_op(n)]
    return dict(Counter(names))


def traced(function: Callable[..., Any], *inputs: Any) -> GraphModule:
    """The graph of ATen of a function, as a backend of torch.compile gets it for inference."""
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    with torch.no_grad():
        aot_function(function, fw_compiler=keep, inference_compiler=keep)(*inputs)
    (graph,) = graphs
    return graph


def rewritten(function: Callable[..., Any], *inputs: Any) -> GraphModule:
    """The same with operators."""
    graph = traced(function, *inputs)
    rewrite_graph(graph.graph)
    graph.recompile()
    return graph


def run(graph: GraphModule, *inputs: Any) -> Any:
    """Its result, or a tuple of several."""
    results = graph(*inputs)
    return results[0] if len(results) == 1 else results


def of_any_rows(function: Callable[..., Any], *inputs: Any) -> Callable[..., Any]:
    """A function that is compiled once, whatever the second dimension of its inputs."""
    for value in inputs:
        if value.dim() > 1:
            torch._dynamo.mark_dynamic(value, 1)
    torch._dynamo.reset()
    return torch.compile(function, backend="mlxnorm", fullgraph=True)
