"""Norms of queries and keys that are rotated next: one operator for both.

The attention's own code runs, but for what it calls: a norm that is held hands its input on as it
is, and the function that rotates gets both done. Everything between them only moves elements, or
the held tensor would not be found again, and what is not found is an error.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

import torch_mlxnorm as mlxnorm

from . import _swap
from ._fused import OPTIONS, is_off, weight_of
from ._launches import Launches
from ._layers import LEAST_EQUAL, has_hooks, is_offloaded
from ._probe import share_equal
from ._report import Entry
from ._trace import Refused

NAMES = ("rotary", "rope")


class _Calls(threading.local):
    """Of attentions that run: what each one holds, by its address."""

    def __init__(self) -> None:
        self.held: list[dict[int, tuple[nn.Module, Tensor]]] = []


_CALLS = _Calls()


def holding(norm: nn.Module) -> FunctionType:
    """A forward that hands its input on while an attention runs that rotates it."""
    run = _swap.function_of(norm)

    @functools.wraps(run)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _CALLS.held and len(args) == 1 and not kwargs:
            _CALLS.held[-1][args[0].data_ptr()] = (self, args[0])
            return args[0]
        return run(self, *args, **kwargs)

    return forward


@dataclass(frozen=True)
class Rope:
    """How a model's function rotates: by the dtype of its tables, which decides what is rounded."""

    function: Callable[..., Any]
    tensors: int  # that it rotates: queries and keys, or one of them
    options: dict[torch.dtype, dict[str, Any]]


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Of a function, or of what `kernels` makes of one: a module."""
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


def rope_of(
    function: Callable[..., Any], name: str, device: torch.device, dtype: torch.dtype
) -> Rope:
    """What it does, found by calling it."""
    names = list(signature_of(function).parameters)
    count = names.index("cos") if "cos" in names else 0
    if names[count : count + 2] != ["cos", "sin"] or count not in (1, 2):
        raise Refused(f"{name} has other arguments")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 64, 128, generator=generator).to(device, dtype)
    angles = torch.randn(2, 64, 64, generator=generator).repeat(1, 1, 2).to(device)
    unit = torch.ones(128, dtype=dtype, device=device)
    normed = mlxnorm.rms_norm(x, unit)
    found = {}
    for table_dtype in dict.fromkeys((dtype, torch.float32)):
        cos, sin = angles.cos().to(table_dtype), angles.sin().to(table_dtype)
        theirs = function(*[normed] * count, cos, sin)
        theirs = theirs if isinstance(theirs, Tensor) else theirs[0]
        for interleaved, rounding in itertools.product(
            (False, True), ("products", "once", "addcmul")
        ):
            options = {
                "interleaved": interleaved,
                "rope_rounding": rounding,
                "full_tables": True,
                "round_intermediates": True,
            }
            tables = cos.unsqueeze(1), sin.unsqueeze(1)
            ours = mlxnorm.rms_norm_rope(x, unit, *tables, **options)
            if share_equal(ours, theirs) >= LEAST_EQUAL:
                found[table_dtype] = options
                break
    if not found:
        raise Refused(f"no operator rotates as {name} does")
    return Rope(function, count, found)


def rotating(rope: Rope) -> Callable[..., Any]:
    """In the place of the function that rotates."""
    signature = signature_of(rope.function)
    count = rope.tensors
    usual_dim = signature.parameters.get("unsqueeze_dim")
    default = 1 if usual_dim is None else usual_dim.default

    def rotate(*args: Any, **kwargs: Any) -> Any:
        held = _CALLS.held[-1]
        if not held:
            return rope.function(*args, **kwargs)
        if len(args) != count + 2 or kwargs.keys() - {"unsqueeze_dim"}:
            given = signature.bind(*args, **kwargs)
            args, kwargs = given.args[: count + 2], {}
            if "unsqueeze_dim" in given.arguments:
                kwargs = {"unsqueeze_dim": given.arguments["unsqueeze_dim"]}
        tensors = args[:count]
        found = [held.pop(tensor.data_ptr(), None) for tensor in tensors]
        dim = kwargs.get("unsqueeze_dim", default)
        rotated = _fused(rope, tensors, found, [table.unsqueeze(dim) for table in args[count:]])
        if rotated is None:
            pairs = zip(tensors, found, strict=True)
            normed = [x if entry is None else _normed(x, *entry) for x, entry in pairs]
            return rope.function(*normed, *args[count:], **kwargs)
        return rotated if count > 1 else rotated[0]

    return rotate


def _normed(tensor: Tensor, norm: nn.Module, held: Tensor) -> Tensor:
    """The view `tensor` of what was held, of its norm."""
    if tensor.shape[-1] == held.shape[-1]:
        return _ungrouped(norm, tensor)
    normed = _ungrouped(norm, held.contiguous())
    if not held.is_contiguous():
        raise RuntimeError("torch_mlxnorm: a held tensor was viewed in another way than expected")
    return normed.as_strided(tensor.shape, tensor.stride(), 0)


def _ungrouped(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm itself, not held again."""
    calls, _CALLS.held = _CALLS.held, []
    try:
        return norm(x)
    finally:
        _CALLS.held = calls


def _fused(
    rope: Rope,
    tensors: Sequence[Tensor],
    found: list[Any],
    tables: list[Tensor],
) -> list[Tensor] | None:
    """None if it has to be done one by one."""
    if any(entry is None for entry in found):
        return None
    of = vars(found[0][0])[OPTIONS]
    rotation = rope.options.get(tables[0].dtype)
    if rotation is None or tables[1].dtype is not tables[0].dtype:
        return None
    weights = [weight_of(norm) for norm, _ in found]
    if any(vars(norm)[OPTIONS] != of for norm, _ in found):
        return None
    if any(x.dim() != 4 for x in tensors):
        return None
    if not all(of.has(norm, x) for (norm, _), x in zip(found, tensors, strict=True)):
        return None
    # Results lie in memory as the code's own would: as the projections do.
    moved = all(not x.is_contiguous() and x.transpose(1, 2).is_contiguous() for x in tensors)
    if moved:
        tensors = [x.transpose(1, 2) for x in tensors]
        tables = [table.transpose(1, 2) if table.dim() == 4 else table for table in tables]
        if any(table.dim() != 4 for table in tables):
            return None
    keywords = rotation | dict(of.options)
    whole = [held.shape[-1] != x.shape[-1] for (_, held), x in zip(found, tensors, strict=True)]
    if any(whole):
        pairs = zip(found, tensors, strict=True)
        heads = [x.shape[-2] * x.shape[-1] == held.shape[-1] for (_, held), x in pairs]
        if not all(whole) or not all(heads):
            return None
        keywords["across_heads"] = True
    if len(tensors) == 2 and not any(whole):
        results = list(mlxnorm.qk_norm_rope(*tensors, *weights, *tables, of.eps, **keywords))
    else:
        results = [
            mlxnorm.rms_norm_rope(x, w, *tables, of.eps, **keywords)
            for x, w in zip(tensors, weights, strict=True)
        ]
    return [result.transpose(1, 2) for result in results] if moved else results


class Attentions:
    """Of a model, whose norms have been replaced."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.ropes: dict[Any, Rope] = {}

    def fuse(self) -> Iterator[tuple[Entry, list[str]]]:
        for path, attention in self.model.named_modules():
            norms = {n: m for n, m in attention.named_children() if OPTIONS in vars(m)}
            if not norms or _swap.is_swapped(attention):
                continue
            function: Any = _swap.function_of(attention)
            name = self.rope_name(function)
            if name is None:
                continue
            try:
                yield self.fused(path, attention, norms, function, name)
            except Refused as why:
                yield Entry(path, type(attention).__name__, reason=str(why)), []

    @staticmethod
    def rope_name(function: Any) -> str | None:
        """Of the global function that its code calls."""
        code = getattr(function, "__code__", None)
        for name in code.co_names if code is not None else ():
            if any(part in name for part in NAMES) and callable(function.__globals__.get(name)):
                return name
        return None

    def fused(
        self,
        path: str,
        attention: nn.Module,
        norms: dict[str, nn.Module],
        function: Any,
        name: str,
    ) -> tuple[Entry, list[str]]:
        """With the names of the norms that are part of it."""
        for child, norm in norms.items():
            if is_offloaded(norm):
                raise Refused(f"the weight of {child} is offloaded")
            if has_hooks(norm):
                raise Refused(f"{child} has hooks")
        matrices = (p for p in attention.parameters() if p.is_floating_point() and p.dim() > 1)
        parameter = next(matrices, None)
        if parameter is None:
            raise Refused("it has no matrix of floating-point numbers")
        if any(p.device.type == "meta" for p in attention.parameters()):
            raise Refused("its weights are offloaded")
        rotates = function.__globals__[name]
        key = (rotates, parameter.device, parameter.dtype)
        if key not in self.ropes:
            self.ropes[key] = rope_of(rotates, name, parameter.device, parameter.dtype)
        rope = self.ropes[key]
        arguments = self.arguments(attention, function, norms, parameter)
        rotated = self.rotated(attention, norms, function, name, arguments)
        if not rotated:
            raise Refused("its norms are not followed by the rotation")
        plain = {child: vars(norm).get("forward") for child, norm in norms.items()}
        for child in rotated:
            _swap.swap_again(norms[child], holding(norms[child]))
        forward = self.forward(function, _swap.rebound(function, name, rotating(rope)))
        results, counts = [], []
        with torch.no_grad():
            for run in (function, forward):
                try:
                    with Launches() as launches:
                        result = run(attention, **arguments())
                except Exception as error:
                    self.put_back(norms, plain)
                    raise Refused(f"it does not run by itself: {error}".splitlines()[0]) from error
                results.append(result[0] if isinstance(result, tuple) else result)
                counts.append(launches)
        equal = share_equal(results[1], results[0])
        if equal < LEAST_EQUAL:
            self.put_back(norms, plain)
            raise Refused(f"fused it would differ ({equal:.2%} of elements equal)")
        _swap.swap(attention, forward)
        before, after = counts
        ours = {n.split("::")[1]: c for n, c in after.counts.items() if n.endswith("_rope")}
        rotation = before.total - after.total + sum(ours.values()) - len(rotated)
        entry = Entry(
            path, type(attention).__name__, ", ".join(ours), equal, rotation, sum(ours.values())
        )
        return entry, [f"{path}.{child}" for child in rotated]

    @staticmethod
    def put_back(norms: dict[str, nn.Module], plain: dict[str, Any]) -> None:
        for child, norm in norms.items():
            norm.forward = plain[child]

    @staticmethod
    def forward(function: Any, run: FunctionType) -> FunctionType:
        @functools.wraps(function)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if is_off():
                return function(self, *args, **kwargs)
            held: dict[int, tuple[nn.Module, Tensor]] = {}
            _CALLS.held.append(held)
            try:
                result = run(self, *args, **kwargs)
            finally:
                _CALLS.held.pop()
            if held:
                raise RuntimeError(
                    f"torch_mlxnorm: in this call {type(self).__name__} did not rotate what it had "
                    "normalized; torch_mlxnorm.integrations.transformers.restore(model) undoes that"
                )
            return result

        return forward

    def arguments(
        self,
        attention: nn.Module,
        function: Any,
        norms: dict[str, nn.Module],
        like: Tensor,
    ) -> Callable[[], dict[str, Any]]:
        """Random ones, the same in every call."""
        head_dim = getattr(attention, "head_dim", None)
        if head_dim is None:
            raise Refused("it has no head_dim")

        def arguments() -> dict[str, Any]:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(2, 16, like.shape[-1], generator=generator)
            angles = torch.randn(2, 16, head_dim // 2, generator=generator).repeat(1, 1, 2)
            given: dict[str, Any] = {}
            for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
                if name == "hidden_states":
                    given[name] = x.to(like)
                elif name == "position_embeddings":
                    given[name] = (angles.cos().to(like), angles.sin().to(like))
                elif name == "shared_kv_states":
                    given[name] = {}
                elif parameter.default is parameter.empty and parameter.kind not in (
                    parameter.VAR_KEYWORD,
                    parameter.VAR_POSITIONAL,
                ):
                    given[name] = None
            return given

        return arguments

    @torch.no_grad()
    def rotated(
        self,
        attention: nn.Module,
        norms: dict[str, nn.Module],
        function: Any,
        name: str,
        arguments: Callable[[], dict[str, Any]],
    ) -> list[str]:
        """The norms whose results the rotation gets."""
        results: dict[int, str] = {}
        found: list[str] = []
        rotates = function.__globals__[name]

        def watched(*args: Any, **kwargs: Any) -> Any:
            for value in args:
                if isinstance(value, Tensor) and value.data_ptr() in results:
                    found.append(results[value.data_ptr()])
            return rotates(*args, **kwargs)

        def remember(child: str, result: Tensor) -> None:
            kept.append(result)  # so that no other tensor gets its address
            results[result.data_ptr()] = child

        kept: list[Tensor] = []
        handles = [
            norm.register_forward_hook(lambda m, i, o, child=child: remember(child, o))
            for child, norm in norms.items()
        ]
        try:
            _swap.rebound(function, name, watched)(attention, **arguments())
        except Exception as error:
            raise Refused(f"it does not run by itself: {error}".splitlines()[0]) from error
        finally:
            for handle in handles:
                handle.remove()
        return list(dict.fromkeys(found))
