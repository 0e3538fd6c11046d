"""Layers of a model whose sums, norms and scalars become one operator each."""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import _swap
from ._fuse import Fusion, code_of
from ._fused import NEXT, OPTIONS, Options, is_off
from ._probe import share_equal
from ._report import Entry
from ._trace import ASKED, REST, Refused, guards, parameters_of, trace

# Of a layer beside the same with only its norms replaced.
LEAST_EQUAL = 0.9999
ELEMENTS = 1 << 14


@dataclasses.dataclass
class FusedLayer:
    path: str
    layer: nn.Module
    fusion: Fusion
    equal: float
    following: str | None  # the norm of the next layer that is worked out with its last sum


class Layers:
    """Of a model, whose norms have been replaced."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.graphs: dict[int, fx.Graph] = {}
        self.guards: dict[Any, list[str]] = {}
        self.closed: set[nn.Module] = set()

    def fuse(self) -> Iterator[FusedLayer | Entry]:
        for path, layer, following in self.layers():
            try:
                found = self.fused(path, layer, following)
            except Refused as why:
                yield Entry(path, type(layer).__name__, reason=str(why))
                continue
            if found is not None:
                yield found

    def layers(self) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
        """Modules of lists that have norms among their children, each with the one after it."""
        for path, module in self.model.named_modules():
            if not isinstance(module, nn.ModuleList):
                continue
            layers = list(module)
            for number, layer in enumerate(layers):
                if any(OPTIONS in vars(child) for child in layer.children()):
                    following = layers[number + 1] if number + 1 < len(layers) else None
                    yield f"{path}.{number}".lstrip("."), layer, following

    def opened(self, module: nn.Module) -> bool:
        """Is it part of the graph? What has a norm of its own and no lists, if it can be."""
        return module not in self.closed and any(
            OPTIONS in vars(child) for child in module.children()
        )

    def fused(self, path: str, layer: nn.Module, following: nn.Module | None) -> Any:
        if _swap.is_swapped(layer):
            return None
        try:
            function = _swap.function_of(layer)
        except _swap.Replaced as error:
            raise Refused(str(error)) from None
        graph = self.traced(layer, function)
        called = {node.target for node in graph.nodes if node.op == "call_module"}
        names = {name: m for name, m in layer.named_modules() if OPTIONS in vars(m)}
        names = {name: module for name, module in names.items() if name in called}
        for name in names:
            if is_offloaded(names[name]):
                raise Refused(f"the weight of {name} is offloaded")
            if has_hooks(names[name]):
                raise Refused(f"{name} has hooks")
        first = None if following is None else self.first_norm(following)
        options = {name: vars(module)[OPTIONS] for name, module in names.items()}
        reason = "nothing in it can be fused"
        for experts in (True, False):
            fusion = Fusion(
                copy_of(graph), options, first is not None,
                None if first is None else vars(first)[OPTIONS],
            )  # fmt: skip
            fusion.run(experts=experts)
            if not fusion.calls:
                continue
            forward = self.compiled(layer, function, graph, fusion)
            equal = probe(layer, graph, function, forward, options)
            if equal >= LEAST_EQUAL:
                _swap.swap(layer, forward)
                if first is not None:
                    vars(layer)[NEXT] = first
                joined = first is not None and any("_and_next_" in call for call in fusion.calls)
                return FusedLayer(path, layer, fusion, equal, self.names[first] if joined else None)
            reason = f"fused it would differ ({equal:.2%} of elements equal)"
        raise Refused(reason)

    def traced(self, layer: nn.Module, function: Callable[..., Any]) -> fx.Graph:
        """With children opened that can be, such as a router."""
        if id(layer) not in self.graphs:
            self.graphs[id(layer)] = self.trace(layer, function)
        return self.graphs[id(layer)]

    def trace(self, layer: nn.Module, function: Callable[..., Any]) -> fx.Graph:
        while True:
            candidates = [child for child in layer.children() if self.opened(child)]
            try:
                return trace(layer, function, self.opened)
            except Refused:
                if not candidates:
                    raise
                self.closed.add(candidates[0])  # most often an attention, which asks for too much

    def first_norm(self, layer: nn.Module) -> nn.Module | None:
        """What a layer does first with its input."""
        try:
            graph = self.traced(layer, _swap.function_of(layer))
        except (Refused, _swap.Replaced):
            return None
        hidden = next(iter(graph.nodes))
        for user in hidden.users:
            if user.op == "call_module" and user.args == (hidden,):
                module = layer.get_submodule(user.target)
                if OPTIONS in vars(module) and not is_offloaded(module):
                    return module
        return None

    def compiled(
        self, layer: nn.Module, function: Callable[..., Any], graph: fx.Graph, fusion: Fusion
    ) -> Any:
        """A function with the arguments of the layer's own."""
        key = (function, str(graph))
        if key not in self.guards:
            self.guards[key] = guards(layer, function, self.opened, graph)
        named, has_rest = parameters_of(function)
        scope: dict[str, Any] = {"_original": function, "_is_off": is_off}
        parameters, given = ["self"], ["self"]
        for name, parameter in named.items():
            default = ""
            if parameter.default is not parameter.empty:
                scope[f"_default_{name}"] = parameter.default
                default = f"=_default_{name}"
            parameters.append(name + default)
            given.append(f"{name}={name}")
        if has_rest:
            parameters.append(f"**{REST}")
            given.append(f"**{REST}")
        off = ["_is_off()", *(f"{name} is None" for name in self.guards[key])]
        off += [f"self.training is not {layer.training}"]
        lines = [
            f"def forward({', '.join(parameters)}):",
            f"    if {' or '.join(off)}:",
            f"        return _original({', '.join(given)})",
            *(f"    {line}" for line in code_of(fusion.graph, scope)),
        ]
        code = "\n".join(lines)
        exec(compile(code, f"<torch_mlxnorm: {type(layer).__name__}>", "exec"), scope)  # noqa: S102
        forward = scope["forward"]
        forward.__doc__ = code
        return forward


def copy_of(graph: fx.Graph) -> fx.Graph:
    result = fx.Graph()
    result.output(result.graph_copy(graph, {}))
    return result


def is_offloaded(norm: nn.Module) -> bool:
    """Does a hook of accelerate bring its weight only when it is called?"""
    hook = getattr(norm, "_hf_hook", None)
    comes_late = hook is not None and getattr(hook, "offload", True)
    return comes_late or any(p.device.type == "meta" for p in norm.parameters())


def has_hooks(norm: nn.Module) -> bool:
    return bool(norm._forward_hooks or norm._forward_pre_hooks)


# ---- a layer beside its fused self ---------------------------------------------------------------


class _Child(nn.Module):
    """In the place of a child that is called with what only the model has."""

    def __init__(self, results: int) -> None:
        super().__init__()
        self.results = results

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim() > 1]
        result = torch.sin(tensors[0] * 1.75 + 0.25) * 3.0
        return (result, *[None] * (self.results - 1)) if self.results else result


@torch.no_grad()
def probe(
    layer: nn.Module,
    graph: fx.Graph,
    function: Callable[..., Any],
    forward: Callable[..., Any],
    options: dict[str, Options],
) -> float:
    """The share of equal elements, on random input."""
    norms = [layer.get_submodule(name) for name in options]
    weights = [norm._parameters.get("weight") for norm in norms]
    weight = next((w for w in weights if w is not None), None)
    if weight is None:
        raise Refused("none of its norms has a weight")
    dtype = next(iter(next(iter(options.values())).dtypes))[0]
    dtype = weight.dtype if (weight.dtype, weight.dtype) in options_dtypes(options) else dtype
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(weight.device, dtype)

    rows = max(5, ELEMENTS // (2 * weight.numel()))
    arguments: dict[str, Any] = {}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        if node is placeholders[0]:
            arguments[node.target] = random(2, rows, weight.numel())
        elif node.target != REST:
            only_handed_on = all(u.op == "call_module" for u in node.users)
            arguments[node.target] = None if only_handed_on else random(1)
    stand_in = _stand_in(layer, graph, options)
    results = []
    for run in (function, forward):
        try:
            given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
            result = run(stand_in, **given)
        except Exception as error:
            raise Refused(f"it does not run by itself: {error}".splitlines()[0]) from error
        results.append(result[0] if isinstance(result, tuple) else result)
    return share_equal(results[1], results[0])


def options_dtypes(options: dict[str, Options]) -> frozenset[Any]:
    return frozenset.intersection(*(of.dtypes for of in options.values()))


def _stand_in(layer: nn.Module, graph: fx.Graph, options: dict[str, Options]) -> nn.Module:
    opaque = {n for n in graph.nodes if n.op == "placeholder"} - {next(iter(graph.nodes))}
    stand_in = copy.copy(layer)
    state = dict(vars(layer))
    state["_modules"] = dict(layer._modules)
    for node in graph.nodes:
        if node.op != "call_module" or node.target in options or "." in node.target:
            continue
        child = layer.get_submodule(node.target)
        meta = any(p.device.type == "meta" for p in child.parameters())
        if opaque.intersection(node.all_input_nodes) or meta:
            if ASKED in node.meta:
                raise Refused(f"its code asks for the type of what {node.target} gives")
            items = [u.args[1] for u in node.users if u.target is operator.getitem]
            state["_modules"][node.target] = _Child(max(items, default=-1) + 1)
    stand_in.__dict__ = state
    return stand_in
