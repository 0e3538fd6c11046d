"""The forward of a layer as a graph of its children, found by running it with stand-ins.

`torch.fx` calls the layer's own code, whatever class it is of. What the code asks of its arguments
beyond handing them on cannot be seen in the graph, so it is refused, or becomes a guard.
"""

from __future__ import annotations

import dis
import inspect
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ._swap import rebound

REST = "_rest"  # stands for further keyword arguments, which go where the layer hands them to


class Refused(Exception):
    """The text says why."""


class _Stand_in(fx.Proxy):
    """Operators in place stay what they are: a tensor may have other names."""


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    target = getattr(operator, name)

    def method(self: _Stand_in, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(_Stand_in, f"__{_name}__", _in_place(_name))


class _Tracer(fx.Tracer):
    def __init__(self, opened: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.opened(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Stand_in(node, self)


def parameters_of(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Those with names, but for the module; and whether there may be others."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in parameters):
        raise Refused("its arguments have no names")
    named = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
    return named, len(named) < len(parameters)


QUESTIONS = {"issubclass", "hasattr", "type", "callable"}
ASKED = "asked"  # in the meta of a node: the code wants to know its type


def refuse_what_a_trace_cannot_see(function: Callable[..., Any]) -> None:
    """Questions that stand-ins answer otherwise than values would."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or function is not inspect.unwrap(function):
        raise Refused("its forward is not a plain function")
    if asked := QUESTIONS.intersection(code.co_names):
        raise Refused(f"its code asks by {min(asked)}")
    if not code.co_flags & inspect.CO_VARKEYWORDS:
        return
    rest = code.co_varnames[
        code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    ]
    steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    for step, following in zip(steps, steps[1:], strict=False):
        reads = step.opname.startswith("LOAD_") and rest in (step.argval, str(step.argval))
        if reads and following.opname not in ("DICT_MERGE", "CALL_FUNCTION_EX"):
            raise Refused(f"its code looks into {rest}")


def trace(
    layer: nn.Module,
    function: Callable[..., Any],
    opened: Callable[[nn.Module], bool],
    absent: str | None = None,
) -> fx.Graph:
    """Calls of children are nodes, but for those that are `opened`. Argument `absent` is None."""
    refuse_what_a_trace_cannot_see(function)
    named, has_rest = parameters_of(function)
    names = [name for name in named if name != absent]
    given = [f"{name}={name}" for name in names] + ([f"{absent}=None"] if absent else [])
    given += [f"{REST}={REST}"] if has_rest else []
    head = f"def root(self, {', '.join(names)}, {REST}):"
    code = f"{head}\n    return function(self, {', '.join(given)})"
    asked: list[fx.Node] = []

    def answer(value: object, types: Any) -> bool:
        """As of a tensor, which the layer's probe has to bear out."""
        if isinstance(value, fx.Proxy):
            asked.append(value.node)
            value = torch.empty(0)
        return isinstance(value, types)

    scope: dict[str, Any] = {"function": rebound(function, "isinstance", answer)}
    exec(code, scope)  # noqa: S102  (fx asks a function for the names of its arguments)
    root = nn.Module.__new__(type("Root", (type(layer),), {"forward": scope["root"]}))
    root.__dict__ = {key: value for key, value in vars(layer).items() if key != "forward"}
    before = dict(vars(root))
    try:
        graph = _Tracer(opened).trace(root)
    except Exception as error:
        raise Refused(f"its code asks for values: {error}".splitlines()[0]) from error
    if any(before.get(name, root) is not value for name, value in vars(root).items()):
        raise Refused("its code sets attributes")
    for node in asked:
        if node.op != "call_module":
            raise Refused(f"its code asks for the type of {node}")
        node.meta[ASKED] = True
    return graph


def text_of(graph: fx.Graph, without: str | None = None) -> str:
    """The same for graphs that compute the same, an argument being None in one of them."""
    lines = []
    names: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.target == without:
            names[node] = "None"
            continue
        names[node] = node.target if node.op == "placeholder" else f"v{len(names)}"
        if node.op != "placeholder":
            arguments = fx.map_arg((node.args, node.kwargs), lambda n: _Name(names[n]))
            lines.append(f"{names[node]} = {node.op} {node.target} {arguments}")
    return "\n".join(lines)


class _Name:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def guards(
    layer: nn.Module,
    function: Callable[..., Any],
    opened: Callable[[nn.Module], bool],
    graph: fx.Graph,
) -> list[str]:
    """Arguments without which the graph would be another one."""
    named, _ = parameters_of(function)
    found = []
    for name, parameter in named.items():
        if parameter.default is not None:
            continue
        try:
            other = text_of(trace(layer, function, opened, absent=name))
        except Refused:
            found.append(name)
            continue
        if _positions(other) != _positions(text_of(graph, without=name)):
            found.append(name)
    return found


def _positions(text: str) -> str:
    """Values are numbered by what is before them, an argument more or less."""
    numbers: dict[str, str] = {}
    return re.sub(r"\bv\d+\b", lambda m: numbers.setdefault(m[0], f"v{len(numbers)}"), text)
