"""Puts operators into a graph where they replace something, and takes out what that leaves."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from torch_mlxnorm.compile.nodes import aten, is_random, mutates

ops = torch.ops.mlxnorm


def fake_mode_of(graph: Graph) -> FakeTensorMode | None:
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    return None


class Rewriter:
    """A functional graph of ATen, whose nodes have fake tensors as their ``val``."""

    def __init__(self, graph: Graph, mode: FakeTensorMode) -> None:
        self.graph = graph
        self._mode = mode
        self._barriers = [node for node in graph.nodes if mutates(node)]
        self._new: dict[Node, Node] = {}

    def calls(self, *targets: Any) -> list[Node]:
        return [n for n in self.graph.nodes if n.op == "call_function" and n.target in targets]

    def may_replace(self, olds: Sequence[Node], read: Any, more: Iterable[Node] = ()) -> bool:
        """Whether nothing is written between what computes olds from the nodes that are read (and
        more nodes). Then it does not matter when these are read."""
        if not self._barriers:
            return True
        inputs: set[Node] = set()
        map_arg(read, inputs.add)
        between: set[Node] = set(more)
        waiting = list(olds)
        while waiting:
            node = waiting.pop()
            if node not in between | inputs and node.op == "call_function":
                between.add(node)
                waiting += node.all_input_nodes
        first, last = min(between), max(between)
        return not any(first < barrier < last for barrier in self._barriers)

    def current(self, arguments: Any) -> Any:
        """Arguments, where nodes that have been replaced are those that replaced them."""

        def newest(node: Node) -> Node:
            while node in self._new:
                node = self._new[node]
            return node

        return map_arg(arguments, newest)

    def evaluate(self, node: Node) -> Any:
        """The fake result of a node."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with self._mode, torch.no_grad(), enable_python_dispatcher():  # symbolic sizes, with 2.8
            return node.target(*args, **kwargs)

    def emit(self, before: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, *self.current((args, kwargs)))
        node.meta["val"] = self.evaluate(node)
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            if key in before.meta:
                node.meta[key] = before.meta[key]
        return node

    def sizes(self, node: Node, before: Node) -> list[int | Node]:
        """The shape of a tensor, as arguments of a call."""
        return [self.size(node, i, before) for i in range(node.meta["val"].dim())]

    def size(self, node: Node, dim: int, before: Node) -> int | Node:
        size = node.meta["val"].shape[dim]
        return size if isinstance(size, int) else self.emit(before, aten.sym_size.int, node, dim)

    def sum(self, a: int | Node, b: int | Node, before: Node) -> int | Node:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return self.emit(before, operator.add, a, b)

    def replace(self, old: Node, new: Node) -> None:
        old.replace_all_uses_with(new)
        self._new[old] = new
        self.sweep([old])

    def sweep(self, nodes: Sequence[Node]) -> None:
        """Erases nodes that nothing uses, and then what only they used."""
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node._erased or node.users or node.op != "call_function" or mutates(node):
                continue
            waiting += node.all_input_nodes
            self.graph.erase_node(node)

    def fuse(self, olds: Sequence[Node], target: Any, *args: Any, **kwargs: Any) -> list[Node]:
        """One call whose results replace olds, in the place of the first of them. What the call
        reads is moved before that place. Nothing, where a result would be needed to compute it."""
        args, kwargs = self.current((args, kwargs))
        first = min(olds)
        read: list[Node] = []
        map_arg((args, kwargs), read.append)
        needed = self._needed_after(first, read)
        if needed & set(olds) or not self.may_replace(olds, read, needed):
            return []
        if any(is_random(node) for node in needed):
            return []
        for node in sorted(needed):
            first.prepend(node)
        call = self.emit(first, target, *args, **kwargs)
        if len(olds) == 1:
            results = [call]
        else:
            results = [self.emit(first, operator.getitem, call, i) for i in range(len(olds))]
        for old, new in zip(olds, results, strict=True):
            old.replace_all_uses_with(new)
            self._new[old] = new
        self.sweep(list(olds))
        return results

    def _needed_after(self, place: Node, nodes: Sequence[Node]) -> set[Node]:
        needed: set[Node] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in needed and not node < place:
                needed.add(node)
                waiting += node.all_input_nodes
        return needed

    def refresh(self, changed: set[Node]) -> None:
        """Results of operators are contiguous, where those of the chain had the strides of its
        input. Works out again what follows from that; a view that strides forbid copies."""
        for node in self.graph.nodes:
            if not changed.intersection(node.all_input_nodes) or node.op != "call_function":
                continue
            if "val" not in node.meta or "unbacked_bindings" in node.meta:
                continue
            if any("val" not in read.meta for read in node.all_input_nodes):
                continue  # graphs, of operators of a higher order
            try:
                value = self.evaluate(node)
            except (RuntimeError, ValueError):
                if node.target is not aten.view.default:
                    raise
                node.target = aten.reshape.default
                value = self.evaluate(node)
            if not _same_layout(node.meta["val"], value):
                node.meta["val"] = value
                changed.add(node)


def _same_layout(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return [*old.stride()] == [*new.stride()]
    if isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)):
        return len(old) == len(new) and all(map(_same_layout, old, new))
    return True
