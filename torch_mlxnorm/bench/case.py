"""An op with inputs to call it with, and the same computed without it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_mlxnorm
from torch_mlxnorm._calls import TOP_K, realistic
from torch_mlxnorm._roles import LIKES, OPS

from .compositions import COMPOSITIONS, Composition

Call = Callable[[], object]


def as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def without_top_k(op: str, name: str, tensor: Tensor) -> Tensor:
    """Of experts, which are summed."""
    return tensor[..., 0, :] if OPS[op][name] == "experts" else tensor


class Case:
    """`shapes` are those that differ from COMPOSITIONS, None for an input that is left out;
    `options` are the op's own. `arguments` and `keywords` are what the op is called with.
    """

    def __init__(
        self,
        op: str,
        rows: int,
        dim: int,
        dtype: torch.dtype,
        *,
        device: str = "cpu",
        eps: float = 1e-6,
        casting_mode: torch_mlxnorm.CastingMode = "gemma",
        shapes: Mapping[str, str | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.op, self.dtype, self.device, self.eps = op, dtype, device, eps
        self.composition: Composition = COMPOSITIONS[op]
        # What differs from the defaults: a keyword costs the dispatcher as much as a short row.
        self.casting = {} if casting_mode == "gemma" else {"casting_mode": casting_mode}
        self.options = dict(options or {})

        generator = torch.Generator(device="cpu" if device == "mps" else device)
        generator.manual_seed(rows * dim)
        sizes = {"rows": rows, "top_k": TOP_K, "dim": dim, "half": dim // 2}
        self.inputs: dict[str, Tensor | None] = {}
        for name, shape in (self.composition.shapes | dict(shapes or {})).items():
            if shape is None:
                self.inputs[name] = None
                continue
            *names, last = shape.split()
            own_dtype = getattr(torch, last, None) if last not in sizes else None
            names += [] if own_dtype else [last]
            numbers = [sizes[size] if size in sizes else int(size) for size in names]
            values = realistic(numbers, own_dtype or dtype, generator)
            if name == "routing_weights":
                values = values.softmax(-1)
            self.inputs[name] = values.to(device)
        self.outs = {
            name: torch.empty_like(without_top_k(op, like, self.inputs[like]))
            for name, like in LIKES[op].items()
        }

    def clone(self) -> Case:
        """The same in other memory."""
        other = copy.copy(self)
        other.inputs = {n: None if t is None else t.clone() for n, t in self.inputs.items()}
        other.outs = {n: torch.empty_like(t) for n, t in self.outs.items()}
        return other

    @property
    def arguments(self) -> list[Any]:
        given = [a for a in self._schema if a.name in self.inputs and not a.kwarg_only]
        return [*(self.inputs[a.name] for a in given), self.eps]

    @property
    def keywords(self) -> dict[str, Any]:
        named = {a.name: self.inputs.get(a.name) for a in self._schema if a.kwarg_only}
        extras = {name: t for name, t in named.items() if t is not None}
        return self.casting | self.options | extras

    @property
    def _schema(self) -> list[Any]:
        return getattr(torch.ops.mlxnorm, self.op).out._schema.arguments

    @property
    def bytes_read(self) -> int:
        return sum(tensor.nbytes for tensor in self.inputs.values() if tensor is not None)

    @property
    def bytes_written(self) -> int:
        return sum(tensor.nbytes for tensor in self.outs.values())

    # ---- what is timed --------------------------------------------------------------------------

    def ours(self) -> Call:
        """The op, writing to its outs."""
        op = getattr(torch.ops.mlxnorm, self.op).out
        return partial(op, *self.arguments, **self.keywords, **self.outs)

    def plain(self) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        """The composition in plain PyTorch. Closes over little, because compiled it checks all."""
        from_eager, options, eps = self.composition.from_eager, self.options, self.eps

        def norm(x: Tensor, weight: Tensor | None) -> Tensor:
            return F.rms_norm(x, x.shape[-1:], weight, eps)

        return lambda *inputs: from_eager(norm, *inputs, **options)

    def eager(self) -> Call:
        """Plain PyTorch, which has fresh results."""
        return partial(self.plain(), *self.inputs.values())

    def compiler(self) -> Callable[[Case], Call]:
        """Of this case and its clones: compiled PyTorch, writing to the outs. Inductor fuses the
        copies into its kernels."""
        torch._dynamo.reset()  # no shape pays for the guards of the others
        plain, count = self.plain(), len(self.inputs)

        def into(*tensors: Tensor | None) -> None:
            results = as_tuple(plain(*tensors[:count]))
            for out, result in zip(tensors[count:], results, strict=True):
                out.copy_(result)

        compiled = torch.compile(into, fullgraph=True, dynamic=False)
        return lambda case: partial(compiled, *case.inputs.values(), *case.outs.values())

    def singles(self) -> Call | None:
        """rms_norm and operators of PyTorch, writing to the outs."""
        if self.composition.from_singles is None:
            return None
        op, eps, casting = torch.ops.mlxnorm.rms_norm.out, self.eps, self.casting
        return partial(
            self.composition.from_singles,
            lambda x, weight, out: op(x, weight, eps, out=out, **casting),
            *self.inputs.values(),
            *self.outs.values(),
            **self.options,
        )
