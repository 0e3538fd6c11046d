"""An op and what PyTorch offers instead, timed in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from compositions import COMPOSITIONS
from torch import Tensor

import torch_mlxnorm
from torch_mlxnorm._calls import realistic
from torch_mlxnorm._roles import LIKES, OPS
from torch_mlxnorm._timing import Times, time_interleaved, waiting_for

TOP_K = 8  # experts a token


def as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def without_top_k(op: str, name: str, tensor: Tensor) -> Tensor:
    """Of experts, which are summed."""
    return tensor[..., 0, :] if OPS[op][name] == "experts" else tensor


class Case:
    """An op with inputs to call it with, and the same computed without it.

    `shapes` are those that differ from COMPOSITIONS, None for an input that is left out; `options`
    are the op's own. `arguments` and `keywords` are what the op is called with.
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
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.device, self.dtype, self.dim, self.eps = device, dtype, dim, eps
        self.composition = COMPOSITIONS[op]
        # What differs from the defaults: a keyword costs the dispatcher as much as a short row.
        self.casting = {} if casting_mode == "gemma" else {"casting_mode": casting_mode}
        self.options = dict(options or {})

        generator = torch.Generator().manual_seed(rows * dim)
        sizes = {"rows": rows, "top_k": TOP_K, "dim": dim, "half": dim // 2}
        self.inputs: dict[str, Tensor | None] = {}
        for name, shape in (self.composition.shapes | dict(shapes or {})).items():
            if shape is not None:
                numbers = [sizes[size] if size in sizes else int(size) for size in shape.split()]
                values = realistic(numbers, dtype, generator)
                if name == "routing_weights":
                    values = values.softmax(-1)
            self.inputs[name] = None if shape is None else values.to(device)

        self.out = getattr(torch.ops.mlxnorm, op).out
        schema = self.out._schema.arguments
        given = [argument for argument in schema if argument.name in self.inputs]
        self.arguments = [*(self.inputs[a.name] for a in given if not a.kwarg_only), eps]
        self.keywords = self.casting | self.options
        named = {a.name: self.inputs[a.name] for a in given if a.kwarg_only}
        self.keywords |= {name: t for name, t in named.items() if t is not None}
        self.outs = {
            name: torch.empty_like(without_top_k(op, like, self.inputs[like]))
            for name, like in LIKES[op].items()
        }

    def ours(self) -> Callable[[], object]:
        """The op, writing to its outs."""
        return partial(self.out, *self.arguments, **self.keywords, **self.outs)

    def plain(self) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        """The composition in plain PyTorch. Closes over little, because compiled it checks all."""
        from_eager, options = self.composition.from_eager, self.options
        dim, eps = (self.dim,), self.eps

        def norm(x: Tensor, weight: Tensor | None) -> Tensor:
            return F.rms_norm(x, dim, weight, eps)

        return lambda *inputs: from_eager(norm, *inputs, **options)

    def eager(self) -> Callable[[], object]:
        """Plain PyTorch, which has fresh results."""
        return partial(self.plain(), *self.inputs.values())

    def compiled(self) -> Callable[[], object]:
        """Compiled PyTorch, writing to the outs: Inductor fuses the copies into its kernels."""
        torch._dynamo.reset()  # no shape pays for the guards of the others
        plain, count = self.plain(), len(self.inputs)

        def into(*tensors: Tensor | None) -> None:
            results = as_tuple(plain(*tensors[:count]))
            for out, result in zip(tensors[count:], results, strict=True):
                out.copy_(result)

        compiled = torch.compile(into, fullgraph=True, dynamic=False)
        return partial(compiled, *self.inputs.values(), *self.outs.values())

    def singles(self) -> Callable[[], object] | None:
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

    def copy(self) -> Callable[[], object]:
        """A copy that moves as many bytes as the op, which reads each input and writes each out
        once: half of these bytes are read, half written."""
        tensors = [*self.inputs.values(), *self.outs.values()]
        moved = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        # Ones: of memory that was never written, the system has but one page.
        source = torch.ones(moved // 2 // self.dtype.itemsize, dtype=self.dtype, device=self.device)
        return partial(torch.empty_like(source).copy_, source)


def time_against_pytorch(case: Case, turns: int = 15) -> Times:
    """Of "ours", "singles" (but for rms_norm itself), "eager", "compiled" and "copy"."""
    candidates = {
        "ours": case.ours(),
        "singles": case.singles(),
        "eager": case.eager(),
        "compiled": case.compiled(),
        "copy": case.copy(),
    }
    return time_interleaved(
        {name: candidate for name, candidate in candidates.items() if candidate is not None},
        wait=waiting_for(case.device),
        turns=turns,
    )
