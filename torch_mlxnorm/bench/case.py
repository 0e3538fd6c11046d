"""An op with inputs to call it with, and the same computed without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_mlxnorm._calls import realistic

from .compositions import COMPOSITIONS
from .shapes import Line

Call = Callable[[], object]


def as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


class Case:
    """The tensors of a line. `arguments` and `keywords` are what its op is called with."""

    def __init__(self, line: Line, device: str = "cpu") -> None:
        self.use, self.dtype, self.device = line.use, line.dtype, device
        self.composition = COMPOSITIONS[line.use.op]
        # What differs from the defaults: a keyword costs the dispatcher as much as a short row.
        llama = line.use.casting_mode == "llama"
        self.casting = {"casting_mode": "llama"} if llama else {}

        generator = torch.Generator(device="cpu" if device == "mps" else device)
        generator.manual_seed(line.rows * line.use.dim)
        self.inputs = {
            name: None if t is None else realistic(list(t.shape), t.dtype, generator).to(device)
            for name, t in line.inputs().items()
        }
        if (weights := self.inputs.get("routing_weights")) is not None:
            self.inputs["routing_weights"] = weights.softmax(-1)
        self.outs = {n: torch.empty_like(t, device=device) for n, t in line.outs().items()}

    def clone(self) -> Case:
        """The same in other memory."""
        other = copy.copy(self)
        other.inputs = {n: None if t is None else t.clone() for n, t in self.inputs.items()}
        other.outs = {n: torch.empty_like(t) for n, t in self.outs.items()}
        return other

    @property
    def op(self) -> str:
        return self.use.op

    @property
    def arguments(self) -> list[Any]:
        schema = getattr(torch.ops.mlxnorm, self.op).out._schema.arguments
        given = [a.name for a in schema if a.name in self.inputs and not a.kwarg_only]
        return [*(self.inputs[name] for name in given), self.use.eps]

    @property
    def keywords(self) -> dict[str, Any]:
        schema = getattr(torch.ops.mlxnorm, self.op).out._schema.arguments
        extras = {a.name: self.inputs.get(a.name) for a in schema if a.kwarg_only}
        extras = {name: tensor for name, tensor in extras.items() if tensor is not None}
        return self.casting | dict(self.use.options) | extras

    @property
    def bytes_read(self) -> int:
        """Each input once."""
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
        from_eager, options, eps = self.composition.from_eager, self.use.options, self.use.eps

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

    def singles(self) -> Call:
        """rms_norm and operators of PyTorch, writing to the outs."""
        assert self.composition.from_singles is not None
        op, eps, casting = torch.ops.mlxnorm.rms_norm.out, self.use.eps, self.casting
        return partial(
            self.composition.from_singles,
            lambda x, weight, out: op(x, weight, eps, out=out, **casting),
            *self.inputs.values(),
            *self.outs.values(),
            **self.use.options,
        )
