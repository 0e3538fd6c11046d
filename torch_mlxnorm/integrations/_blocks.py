"""Blocks of a model, each run as a graph in which what stands around its norms has become part of
operators: by :mod:`torch_mlxnorm.compile`, op by op, without code generation.

A block is compiled when it is first called, with what the model gives it, and compared then with
its own code: what a model calls its blocks with only the model knows.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only

from . import _swap
from ._fused import is_off
from ._launches import Launches
from ._layers import LEAST_EQUAL, is_offloaded
from ._probe import share_equal
from ._report import Entry, Report

NOT_YET = "it is compiled and compared when it is first called"
MUTATES = "its code changes its inputs"
_NAMESPACE = "mlxnorm::"
ops = torch.ops.mlxnorm


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """What became of a graph: the operators that it calls in the end, the kernels that went and
    those that came, without norms that stayed, and the paths of norms that are in operators now."""

    calls: tuple[str, ...]
    before: int
    after: int
    absorbed: frozenset[str]
    mutates: bool


class Kind:
    """Blocks with one forward, compiled together."""

    def __init__(
        self, function: FunctionType, blocks: dict[nn.Module, str], report: Report
    ) -> None:
        self.function, self.blocks, self.report = function, blocks, report
        self.paths = frozenset(blocks.values())
        self.refused = False
        self._written: dict[str, Entry] = {}  # what the report had before
        self.shares: list[float] = []
        self._graphs = 0
        self._ran: list[Rewritten] = []
        # A copy has a cache of its own: that of the class's may be full of what others compiled.
        own = FunctionType(
            function.__code__.replace(), function.__globals__, function.__name__,
            function.__defaults__, function.__closure__,
        )  # fmt: skip
        own.__kwdefaults__ = function.__kwdefaults__
        self._compiled = torch.compile(own, backend=self._backend)

    def forward(self) -> FunctionType:
        kind, function = self, self.function

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if is_off() or kind.refused or self.training:
                return function(self, *args, **kwargs)
            return kind.run(self, args, kwargs)

        return forward

    def run(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        graphs, given = self._graphs, tree_flatten((args, kwargs))
        self._ran.clear()
        try:
            result = self._compiled(block, *args, **kwargs)
        except Exception as error:
            own = self.function(block, *args, **kwargs)  # which raises what is the caller's fault
            self.refuse(f"it cannot be compiled: {error}".splitlines()[0])
            return own
        if self._graphs > graphs and not _is_unchanged((args, kwargs), *given):
            self.refuse(MUTATES)
            return result
        if self._graphs > graphs and not any(ran.mutates for ran in self._ran):
            own = self.function(block, *args, **kwargs)
            share = equal_share(result, own)
            if share is not None and share < LEAST_EQUAL:
                self.refuse(f"compiled it would differ ({share:.2%} of elements equal)", share)
                return own
            self.shares += [] if share is None else [share]
        if block in self.blocks:
            self._tell(block)
        return result

    def _tell(self, block: nn.Module) -> None:
        """What was made of a block, at its first call."""
        calls = [call for ran in self._ran for call in ran.calls if call != "rms_norm"]
        if any(ran.mutates for ran in self._ran):
            return self.refuse(MUTATES)
        if not calls:
            return self.refuse("nothing in it can be fused")
        path = self.blocks.pop(block)
        absorbed = {f"{path}.{name}" for ran in self._ran for name in ran.absorbed}
        for old in self.report.entries:
            if old.path in absorbed:
                self._write(dataclasses.replace(old, launches_after=0))
        self._write(
            Entry(
                path,
                type(block).__name__,
                ", ".join(dict.fromkeys(calls)),
                min(self.shares, default=None),
                sum(ran.before for ran in self._ran),
                sum(ran.after for ran in self._ran),
            )
        )
        return None

    def _write(self, entry: Entry) -> None:
        places = {old.path: place for place, old in enumerate(self.report.entries)}
        place = places[entry.path]
        self._written.setdefault(entry.path, self.report.entries[place])
        self.report.entries[place] = entry

    def refuse(self, reason: str, share: float | None = None) -> None:
        """Blocks that have run as a graph and were equal are refused as well: their code is one."""
        self.refused = True
        for entry in list(self._written.values()):
            self._write(entry)
        for old in self.report.entries:
            if old.reason == NOT_YET and old.path in self.paths:
                self._write(dataclasses.replace(old, reason=reason, equal=share))

    def _backend(self, graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        from torch_mlxnorm.compile.dynamo import compiled
        from torch_mlxnorm.compile.graph import rewrite_graph

        known: list[Rewritten] = []

        def for_inference(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            before = list(graph.graph.nodes)
            kernels, norms = _kernels(before), _norm_paths(before)
            mutates = any(_mutates_an_input(node) for node in before)
            if rewrite_graph(graph.graph):
                graph.recompile()
            known.append(_difference(kernels, norms, graph.graph, mutates))
            return make_boxed_func(graph.forward)

        function = compiled(graph, inputs, for_inference)
        self._graphs += 1

        def run(*arguments: Any) -> Any:
            self._ran += known
            return function(*arguments)

        return run


def _is_unchanged(arguments: Any, leaves: list[Any], structure: TreeSpec) -> bool:
    """Whether lists and dicts among the arguments, such as a cache, hold what they held."""
    now, structure_now = tree_flatten(arguments)
    same = structure == structure_now
    return same and all(mine is its for mine, its in zip(now, leaves, strict=True))


def _kernels(nodes: Sequence[Node]) -> Counter[Node]:
    return Counter(node for node in nodes if _is_kernel(node))


def _is_kernel(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    values = tree_map_only(Node, lambda n: n.meta.get("val"), node.args)
    return Launches.launches(node.target, values, node.meta.get("val"))


def _norm_paths(nodes: Sequence[Node]) -> dict[Node, str]:
    """Where in the block the norms are that its graph calls."""
    paths = {}
    for node in nodes:
        if node.target in (ops.rms_norm.default, ops.channel_rms_norm.default):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            name = stack[-1][0] if stack else ""
            paths[node] = _below_the_block(name)
    return paths


def _below_the_block(name: str) -> str:
    """``L['self'].attn.norm_q``, or with ``_modules['attn']``, is ``attn.norm_q``."""
    name = name.replace("._modules['", ".").replace("['", ".").replace("']", "")
    return name.removeprefix("L.self").lstrip(".")


def _mutates_an_input(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _difference(
    kernels: Counter[Node], norms: dict[Node, str], graph: Graph, mutates: bool
) -> Rewritten:
    after = list(graph.nodes)
    left = set(after)
    # A copy that went is a dropout of nothing, which the model's own code does not launch.
    copy = torch.ops.aten.clone.default
    gone = [n for n in kernels if n not in left and n not in norms and n.target is not copy]
    new = [node for node in after if _is_kernel(node) and node not in kernels]
    names = [node.target._schema.name for node in new]
    calls = tuple(n.removeprefix(_NAMESPACE) for n in names if n.startswith(_NAMESPACE))
    absorbed = frozenset(path for node, path in norms.items() if node not in left)
    return Rewritten(calls, len(gone), len(new), absorbed, mutates)


def equal_share(ours: Any, theirs: Any) -> float | None:
    """Of all tensors in what a block gives; None if they have no values."""
    ours, theirs = tree_leaves(ours), tree_leaves(theirs)
    if len(ours) != len(theirs):
        return 0.0
    total = equal = 0
    for mine, its in zip(ours, theirs, strict=True):
        if not isinstance(its, Tensor):
            continue
        if its.is_meta:
            return None
        if its.is_floating_point():
            total += its.numel()
            equal += share_equal(mine, its) * its.numel()
    return equal / total if total else 1.0


def blocks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of its outermost lists that have norms which were replaced."""
    done: set[str] = set()
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        for name, block in module.named_children():
            inner = f"{path}.{name}".lstrip(".")
            if isinstance(block, nn.ModuleList) or any(inner.startswith(f"{d}.") for d in done):
                continue
            if any(map(_swap.is_swapped, block.modules())):
                done.add(inner)
                yield inner, block


def compile_blocks(model: nn.Module, report: Report, prefix: str = "") -> None:
    """Adds an entry for each block to the report, which tells more when the block has run."""
    kinds: dict[Any, dict[nn.Module, str]] = {}
    for path, block in blocks_of(model):
        if _swap.is_swapped(block):
            continue
        name, path = type(block).__name__, prefix + path
        try:
            function = _swap.function_of(block)
        except _swap.Replaced as error:
            report.entries.append(Entry(path, name, reason=str(error)))
            continue
        if any(_swap.is_swapped(part) and is_offloaded(part) for part in block.modules()):
            if not all(p.is_meta for p in model.parameters()):
                report.entries.append(Entry(path, name, reason="parts of it are offloaded"))
                continue
        kinds.setdefault(function, {})[block] = path
        report.entries.append(Entry(path, name, reason=NOT_YET))
    for function, blocks in kinds.items():
        forward = Kind(function, dict(blocks), report).forward()
        for block in blocks:
            _swap.swap(block, forward)
