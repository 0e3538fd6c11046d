"""Calls of every operator with tensors that fit it, made from its schema."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import torch_mlxnorm
from torch_mlxnorm import reference
from torch_mlxnorm._roles import EXTRAS, LIKES, OPS, Role, has_channels

ScaleKind = Literal["one", "dim", "rows"]
TOP_K = 8  # experts a token


def realistic(shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Like a residual stream: most channels near 1, a few larger by orders of magnitude."""
    device = generator.device
    channels = torch.exp(torch.randn(shape[-1], generator=generator, device=device))
    values = torch.randn(shape, generator=generator, device=device)
    return values.mul_(channels).to(dtype)


class Summands(Tensor):
    """Without signs: a difference is a sum."""

    @classmethod
    def of(cls, tensor: Tensor) -> Summands:
        return tensor.abs().as_subclass(cls)

    def __sub__(self, other: Any) -> Any:
        return self + other


@dataclass(frozen=True)
class Operator:
    """What the schema says."""

    name: str
    tensors: dict[str, Role]
    optional: list[str]
    extras: list[str]
    options: list[str]
    outs: list[str]

    @classmethod
    def named(cls, name: str) -> Operator:
        arguments = getattr(torch.ops.mlxnorm, name).out._schema.arguments
        tensors, outs = OPS[name], [a.name for a in arguments if a.is_out]
        return cls(
            name,
            tensors,
            [a.name for a in arguments if str(a.type) == "Optional[Tensor]"],
            EXTRAS[name],
            [a.name for a in arguments if a.name not in (*tensors, *outs)],
            outs,
        )

    @property
    def has_scale(self) -> bool:
        return "scale" in self.tensors.values()


def operators() -> list[Operator]:
    return [Operator.named(name) for name in sorted(OPS)]


@dataclass(frozen=True)
class Call:
    """An operator with its arguments."""

    operator: Operator
    tensors: dict[str, Tensor | None]
    options: dict[str, Any]

    def __call__(self) -> tuple[Tensor, ...]:
        return self._results_of(torch_mlxnorm, self.tensors)

    def write(self, outs: tuple[Tensor, ...]) -> None:
        given = outs if len(outs) > 1 else outs[0]
        function = getattr(torch_mlxnorm, self.operator.name)
        function(**self.tensors, **self.options, out=given)

    def again(self) -> Iterator[tuple[Tensor, ...]]:
        """Results of call after call, in fresh tensors and in outs by turns."""
        outs = self.empty_outs()
        while True:
            yield self()
            self.write(outs)
            yield outs

    def reference(self) -> tuple[Tensor, ...]:
        return self._results_of(reference, self.tensors)

    def magnitudes(self) -> tuple[Tensor, ...]:
        """What the summands of the results add up to, their signs left out."""
        absolute = {name: Summands.of(t) for name, t in self.present.items()}
        numbers = {name: abs(v) for name, v in self.options.items() if isinstance(v, float)}
        call = Call(self.operator, self.tensors | absolute, self.options | numbers)
        return tuple(result.as_subclass(Tensor) for result in call.reference())

    def _results_of(self, module: Any, tensors: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        results = getattr(module, self.operator.name)(**tensors, **self.options)
        return (results,) if isinstance(results, Tensor) else tuple(results)

    @property
    def input(self) -> Tensor:
        """One that is as the results are."""
        roles = self.operator.tensors
        return next(t for name, t in self.present.items() if roles[name] in ("input", "channels"))

    @property
    def present(self) -> dict[str, Tensor]:
        return {name: t for name, t in self.tensors.items() if t is not None}

    def empty_outs(self) -> tuple[Tensor, ...]:
        likes = [self.present[LIKES[self.operator.name][name]] for name in self.operator.outs]
        return tuple(torch.empty_like(self.input, dtype=like.dtype) for like in likes)

    @property
    def bytes_moved(self) -> int:
        """Each input read once, each result written once."""
        return sum(t.nbytes for t in [*self.present.values(), *self.empty_outs()])

    def first_row(self) -> Call:
        """The same, of the first row alone."""
        rowwise = [(name, t) for name, t in self.present.items() if t.dim() > 1]
        first = {name: self._first(t) for name, t in rowwise}
        return Call(self.operator, self.tensors | first, self.options)

    def first_row_of(self, results: tuple[Tensor, ...]) -> list[Tensor]:
        return [self._first(result) for result in results]

    def _first(self, rows: Tensor) -> Tensor:
        return rows[..., :1] if has_channels(self.operator.name) else rows[:1]


def make_call(
    operator: Operator,
    rows: int,
    dim: int,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    operand_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    missing: Collection[str] = (),
    extras: bool = False,
    scale: ScaleKind = "dim",
    **options: Any,
) -> Call:
    """With random tensors, the same in every run. `operand_dtype` is that of operands,
    `residual_dtype` that of a residual (None: `dtype`). `extras`: all of them are there."""
    generator = torch.Generator().manual_seed(rows * dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    operand_dtype = operand_dtype or dtype
    scale_shape = {"one": (1,), "dim": (dim,), "rows": (rows, dim)}[scale]
    make: dict[Role, Callable[[], Tensor]] = {
        "input": lambda: realistic([rows, dim], dtype, generator),
        "experts": lambda: realistic([rows, TOP_K, dim], dtype, generator),
        # Contiguous: as most models have them.
        "channels": lambda: realistic([rows, dim], dtype, generator).t().contiguous().unsqueeze(0),
        "per_channel": lambda: normal(dim).to(operand_dtype),
        "weight": lambda: normal(dim).to(operand_dtype),
        "bias": lambda: normal(dim).to(operand_dtype),
        "scale": lambda: normal(*scale_shape).to(operand_dtype),
        "angles": lambda: normal(rows, dim // 2).sin().to(operand_dtype),
        "residual": lambda: realistic([rows, dim], residual_dtype or dtype, generator),
        "routing_weights": lambda: normal(rows, TOP_K).softmax(-1).to(operand_dtype),
    }
    left_out = {*missing, *(() if extras else operator.extras)}
    tensors = {
        name: None if name in left_out else make[role]().to(device)
        for name, role in operator.tensors.items()
    }
    return Call(operator, tensors, options)
