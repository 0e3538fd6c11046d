"""Which parts of a layer's graph are one operator.

Sums of the residual stream are looked for, with the norms before and after them. Every result is
rounded as the modules one by one would.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from . import _fused
from ._fused import Fused, Options
from ._trace import Refused

ADDS = (operator.add, torch.add)
MULS = (operator.mul, torch.mul)
READS = (operator.getitem, getattr)
IN_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul}
CHANGES = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
VIEWS = ("reshape", "view", "flatten", "squeeze", "unsqueeze", "transpose", "contiguous", "to")


@dataclass
class Fusion:
    """A graph that is being rewritten. Norms by the names of their modules."""

    graph: fx.Graph
    norms: Mapping[str, Options]
    has_next: bool
    next_options: Options | None = None
    # What was done: operators, norms and other kernels that went into them.
    calls: list[str] = field(default_factory=list)
    absorbed: set[str] = field(default_factory=set)
    elementwise: int = 0

    def run(self, *, experts: bool) -> None:
        self.replace_in_place()
        for node in list(self.graph.nodes):
            if node in self.graph.nodes and node.target in MULS:
                self.end_of_layer(node, experts) or self.scaled_sum(node)
        for node in list(self.graph.nodes):
            if node.target in ADDS and len(node.args) == 2 and not node.kwargs:
                self.sum(node)
        self.erase_unused()
        self.check_in_place()

    # ---- what a node is --------------------------------------------------------------------------

    def is_norm(self, node: Any) -> bool:
        return (
            isinstance(node, fx.Node)
            and node.op == "call_module"
            and node.target in self.norms
            and len(node.args) == 1
            and not node.kwargs
        )

    def only_norm(self, node: Any, of: Options | None = None) -> bool:
        """A norm whose result goes nowhere else."""
        return (
            self.is_norm(node)
            and len(node.users) == 1
            and (of is None or self.norms[node.target] == of)
        )

    def norms_of(self, node: fx.Node, of: Options) -> list[fx.Node]:
        return [user for user in node.users if self.is_norm(user) and self.norms[user.target] == of]

    def is_tensor(self, node: Any) -> bool:
        """And not what is known to be something else."""
        return isinstance(node, fx.Node) and node.target is not getattr

    def branch_of(self, add: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """The norm and the other one of a sum."""
        a, b = add.args
        for norm, other in ((b, a), (a, b)):
            if self.only_norm(norm) and self.is_tensor(other) and norm is not other:
                return norm, other
        return None

    # ---- rewriting -------------------------------------------------------------------------------

    def replace(
        self,
        at: fx.Node,
        function: Fused,
        modules: list[str],
        arguments: list[Any],
        results: Mapping[fx.Node, int | None],
        keywords: dict[str, Any] | None = None,
    ) -> None:
        """A call in the place of `at`; each of the `results` is one of what it returns, or all."""
        with self.graph.inserting_before(at):
            attributes = [self.graph.get_attr(name) for name in modules]
            call = self.graph.call_function(function, (*attributes, *arguments), keywords or {})
        for old, number in results.items():
            new = call
            if number is not None:
                with self.graph.inserting_after(call):
                    new = self.graph.call_function(operator.getitem, (call, number))
            old.replace_all_uses_with(new)
        for old in reversed(list(self.graph.nodes)):
            if old in results and not old.users:
                self.graph.erase_node(old)
        self.calls.append(function.__name__)
        self.absorbed.update(modules)

    def replace_in_place(self) -> None:
        """Of a value without another name, which was just worked out, a change is a new one."""
        for node in list(self.graph.nodes):
            if node.target in IN_PLACE:
                value = node.args[0]
                if value.target in (*ADDS, *MULS) and len(value.users) == 1:
                    node.target = IN_PLACE[node.target]

    def erase_unused(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            pure = node.op == "get_attr" or node.target in (*ADDS, *MULS, *READS, "reshape")
            if pure and not node.users:
                self.graph.erase_node(node)

    def check_in_place(self) -> None:
        """What is changed in place may be read by an operator later than by the modules."""
        used = {self.place(a) for n in self.graph.nodes if is_fused(n) for a in n.all_input_nodes}
        for node in self.graph.nodes:
            if node.target in CHANGES or (node.op == "call_method" and node.target.endswith("_")):
                value, part = self.place(node.args[0])
                overlaps = any(
                    value is other and (part[: len(p)] == p or p[: len(part)] == part)
                    for other, p in used
                )
                if overlaps or value.op == "placeholder":
                    raise Refused(f"it changes {value} in place")

    def place(self, node: fx.Node) -> tuple[fx.Node, tuple[int, ...]]:
        """What a view is of, and which part of it, or of a tuple."""
        part: tuple[int, ...] = ()
        while isinstance(node.args[0] if node.args else None, fx.Node):
            if node.target is operator.getitem:
                index = node.args[1]
                part = (index, *part) if isinstance(index, int) else ()
            elif node.op != "call_method" or node.target not in VIEWS:
                break
            node = node.args[0]
        return node, part

    # ---- patterns --------------------------------------------------------------------------------

    def scalar_of(self, mul: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """(sum, layer scalar)"""
        if len(mul.args) != 2 or mul.kwargs:
            return None
        for value, scalar in (mul.args, mul.args[::-1]):
            if (
                isinstance(value, fx.Node)
                and isinstance(scalar, fx.Node)
                and scalar.op == "get_attr"
                and value.target in ADDS
                and len(value.users) == 1
            ):
                return value, scalar
        return None

    def end_of_layer(self, mul: fx.Node, experts: bool) -> bool:
        """(residual + N(branch + N(x))) * scalar"""
        found = self.scalar_of(mul)
        if found is None or (last := self.branch_of(found[0])) is None:
            return False
        scalar, (norm3, residual) = found[1], last
        inner, of = norm3.args[0], self.norms[norm3.target]
        if inner.target not in ADDS or len(inner.users) != 1:
            return False
        inner_branch = self.branch_of(inner)
        if inner_branch is None or self.norms[inner_branch[0].target] != of:
            return False
        norm2, branch = inner_branch
        modules = [norm2.target, norm3.target]
        x = norm2.args[0]
        call = self.experts_of(x) if experts else None
        dead = {mul: None, found[0]: None, norm3: None, inner: None, norm2: None}
        self.elementwise += 3
        if call is None:
            function, arguments = _fused.end_of_layer(of), [x, branch, residual, scalar]
        else:
            function = _fused.end_of_moe_layer(of)
            modules = [call.target, *modules]
            arguments = [*call.args, branch, residual, scalar]
            self.elementwise += 2  # the product with routing weights, and its sum
        self.replace(mul, function, modules, arguments, {mul: None})
        for node in list(dead)[1:]:
            if not node.users:
                self.graph.erase_node(node)
        return True

    def experts_of(self, x: fx.Node) -> fx.Node | None:
        """A call with rows, the experts' numbers and their weights, whose sum is a norm's input."""
        while x.op == "call_method" and x.target in ("reshape", "view") and len(x.users) == 1:
            x = x.args[0]
        is_call = x.op == "call_module" and x.target not in self.norms and len(x.users) == 1
        return x if is_call and len(x.args) == 3 and not x.kwargs else None

    def scaled_sum(self, mul: fx.Node) -> bool:
        """(residual + N(x)) * scalar"""
        found = self.scalar_of(mul)
        if found is None or (branch := self.branch_of(found[0])) is None:
            return False
        self.elementwise += 2
        self.normed_sum(mul, found[0], *branch, scale=found[1])
        return True

    def sum(self, add: fx.Node) -> None:
        branch = self.branch_of(add)
        if branch is not None:
            self.elementwise += 1
            self.normed_sum(add, add, *branch)
        else:
            self.plain_sum(add)

    def normed_sum(
        self, result: fx.Node, add: fx.Node, norm: fx.Node, residual: fx.Node, scale: Any = None
    ) -> None:
        """`result` is residual + N(x), or that times a scale."""
        of, x = self.norms[norm.target], norm.args[0]
        keywords = {} if scale is None else {"scale": scale}
        dead = [node for node in (add, norm) if node is not result]
        following = self.norms_of(result, of)
        if scale is None and self.three_norms(result, norm, residual):
            pass
        elif following:
            self.replace(
                result, _fused.norm_add_norm(of), [norm.target, following[0].target],
                [x, residual], {result: 0, following[0]: 1}, keywords,
            )  # fmt: skip
        elif self.is_last(result) and self.next_options == of:
            function = _fused.last_norm_add(of)
            self.replace(
                result, function, ["", norm.target], [x, residual], {result: None}, keywords
            )
        else:
            self.replace(
                result, _fused.norm_add(of), [norm.target], [x, residual], {result: None}, keywords
            )
        for node in dead:
            if not node.users:
                self.graph.erase_node(node)

    def three_norms(self, total: fx.Node, norm: fx.Node, residual: fx.Node) -> bool:
        """Of the sum, or of its rows in another shape."""
        of = self.norms[norm.target]
        rows = [
            user for user in total.users if user.op == "call_method" and user.target == "reshape"
        ]
        found = [(user, None) for user in self.norms_of(total, of)]
        found += [(user, view) for view in rows for user in self.norms_of(view, of)]
        if len(found) != 3:
            return False
        results: dict[fx.Node, int | None] = {total: 0}
        for number, (user, view) in enumerate(found, start=1):
            if view is not None:  # the norm of a view is a view of the norm
                with self.graph.inserting_after(user):
                    again = self.graph.call_method("reshape", (user, *view.args[1:]))
                user.replace_all_uses_with(
                    again, delete_user_cb=lambda n, again=again: n is not again
                )
                user.args = (total,)
            results[user] = number
        modules = [norm.target, *(user.target for user, _ in found)]
        function = _fused.norm_add_three_norms(of)
        self.replace(total, function, modules, [norm.args[0], residual], results)
        self.check_order()
        return True

    def plain_sum(self, add: fx.Node) -> None:
        residual, x = add.args
        if not (self.is_tensor(residual) and self.is_tensor(x)) or residual is x:
            return
        alpha, product = 1.0, x
        if x.target in MULS and len(x.users) == 1 and isinstance(x.args[1], int | float):
            alpha, product = float(x.args[1]), x.args[0]
        following = [user for user in add.users if self.is_norm(user)]
        if following:
            of = self.norms[following[0].target]
            function = _fused.add_norm(of, alpha)
            results: dict[fx.Node, int | None] = {add: 1, following[0]: 0}
            self.replace(add, function, [following[0].target], [product, residual], results)
        elif self.is_last(add) and self.next_options is not None:
            function = _fused.last_add(self.next_options, alpha)
            self.replace(add, function, [""], [product, residual], {add: None})
        else:
            return
        self.elementwise += 1 + (alpha != 1.0)

    def is_last(self, node: fx.Node) -> bool:
        """Is it what the layer returns, alone or first?"""
        users = list(node.users)
        if not self.has_next or len(users) != 1 or users[0].op != "output":
            return False
        (value,) = users[0].args
        return value is node or (isinstance(value, tuple) and value[0] is node)

    def check_order(self) -> None:
        """A norm that is worked out with its sum may be called with what comes later."""
        order = {node: number for number, node in enumerate(self.graph.nodes)}
        for node in list(self.graph.nodes):
            late = max((order[a] for a in node.all_input_nodes), default=-1)
            if late > order[node]:
                raise Refused("its norms are not where their sum is")


def is_fused(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target.__module__ == _fused.__name__


# ---- code ----------------------------------------------------------------------------------------


def code_of(graph: fx.Graph, scope: dict[str, Any]) -> Iterator[str]:
    """Lines of a function whose parameters are the placeholders. What is not a literal goes into
    `scope` by a name."""
    last_use: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            last_use[used] = node
    inlined = {node for node in graph.nodes if node.op == "get_attr"}

    def named(value: Any, hint: str) -> str:
        name = next((n for n, v in scope.items() if v is value), None)
        if name is None:
            name = f"_{hint}_{len(scope)}"
            scope[name] = value
        return name

    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            if value.op == "get_attr":
                return f"self.{value.target}" if value.target else "self"
            return value.name
        if isinstance(value, tuple):
            return f"({''.join(text(v) + ', ' for v in value)})"
        if isinstance(value, list):
            return f"[{', '.join(map(text, value))}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{k!r}: {text(v)}' for k, v in value.items())}}}"
        if isinstance(value, slice):
            return f"slice({text(value.start)}, {text(value.stop)}, {text(value.step)})"
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        return named(value, "value")

    def arguments(node: fx.Node, skip: int = 0) -> str:
        parts = [text(value) for value in node.args[skip:]]
        for name, value in node.kwargs.items():
            is_rest = isinstance(value, fx.Node) and value.target == name == "_rest"
            parts.append("**_rest" if is_rest else f"{name}={text(value)}")
        return ", ".join(parts)

    for node in graph.nodes:
        if node.op == "placeholder" or node in inlined:
            continue
        if node.op == "output":
            yield f"return {text(node.args[0])}"
            continue
        if node.op == "call_module":
            call = f"self.{node.target}({arguments(node)})"
        elif node.op == "call_method":
            call = f"{text(node.args[0])}.{node.target}({arguments(node, skip=1)})"
        elif node.target is operator.getitem:
            call = f"{text(node.args[0])}[{text(node.args[1])}]"
        else:
            call = f"{named(node.target, getattr(node.target, '__name__', 'f'))}({arguments(node)})"
        yield f"{node.name} = {call}"
        dead = [n.name for n in node.all_input_nodes if last_use[n] is node and n not in inlined]
        dead += [node.name] if not node.users else []
        if dead:
            yield f"{' = '.join(dict.fromkeys(dead))} = None"
