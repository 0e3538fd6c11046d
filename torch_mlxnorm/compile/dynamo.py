"""A backend of :func:`torch.compile` that generates no code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo import register_backend
from torch._functorch.aot_autograd import aot_module_simplified
from torch.fx import GraphModule

from torch_mlxnorm.compile.graph import rewrite_graph
from torch_mlxnorm.compile.prepare import prepare


def _as_it_is(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    return make_boxed_func(graph.forward)


def _rewritten(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    if rewrite_graph(graph.graph):
        graph.recompile()
    return make_boxed_func(graph.forward)


def compiled(
    graph: GraphModule,
    inputs: Sequence[Tensor],
    for_inference: Callable[..., Any] = _rewritten,
) -> Callable[..., Any]:
    """A graph of Dynamo as it will run, op by op; `for_inference` is given that of ATen."""
    if prepare(graph.graph):
        graph.recompile()
    return aot_module_simplified(
        graph,
        inputs,
        fw_compiler=_as_it_is,
        bw_compiler=_as_it_is,
        inference_compiler=for_inference,
        keep_inference_input_mutations=True,
    )


def backend(graph: GraphModule, inputs: Sequence[Tensor], **options: Any) -> Callable[..., Any]:
    """``torch.compile(model, backend="mlxnorm")``: runs a model's graph op by op, as eager mode
    does, with the operators of this package in the place of its norms. No code is generated and
    no compiler is needed. Graphs with gradients stay as they are.

    The bits are those of the model with its norms replaced by :func:`torch_mlxnorm.rms_norm`.

    Args:
        graph, inputs: what :func:`torch.compile` gives to a backend.
        options: none so far.

    Raises:
        TypeError: there are options.
    """
    if options:
        given = options.get("options") or options
        raise TypeError(f'backend "mlxnorm" takes no options, got {", ".join(given)}')
    return compiled(graph, inputs)


register_backend(backend, name="mlxnorm")
