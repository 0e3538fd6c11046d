"""The family of ops as the tests see it: what each takes and gives, and calls of it to compare."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import pytest
import torch
from oracle import assert_same_bits, assert_within
from steps import FORMULAS, Bounds, Chain, Interval, Options, Steps
from tensors import DTYPES, Guarded, randn
from torch import Tensor

import torch_mlxnorm
from torch_mlxnorm import reference
from torch_mlxnorm._roles import EXTRAS, LIKES
from torch_mlxnorm._roles import OPS as TABLES

Role = Literal[
    "input", "experts", "weight", "scale", "routing_weights", "angles", "bias", "residual",
    "channels", "per_channel",
]  # fmt: skip
ScaleKind = Literal["one", "dim", "rows"]

# Which operands (weights, scale, routing weights, angles) are float32 beside other inputs.
FLOAT32_OPERANDS: dict[str, slice] = {
    "none": slice(0),
    "all": slice(None),
    "even": slice(0, None, 2),
    "odd": slice(1, None, 2),
}


# Dtypes of the operands: the inputs', float32, or all three in turn.
OPERANDS: dict[str, dict[str, Any]] = {
    "same": {},
    "float32": {"float32": "all"},
    "mixed": {"mixed": 1},
    "mixed again": {"mixed": 2},
}


@dataclass(frozen=True)
class Tensorlike:
    """A tensor argument."""

    name: str
    role: Role
    optional: bool
    keyword: bool
    default: object  # `...` where there is none


@dataclass(frozen=True)
class Op:
    """What its schema and its table (csrc/ops) say; test_family compares them with all else."""

    name: str

    @property
    def packet(self) -> Any:
        return getattr(torch.ops.mlxnorm, self.name)

    @cached_property
    def _arguments(self) -> list[Any]:
        return self.packet.out._schema.arguments

    @cached_property
    def tensors(self) -> dict[str, Tensorlike]:
        roles = TABLES[self.name]
        return {
            a.name: Tensorlike(
                a.name,
                cast(Role, roles[a.name]),
                optional=str(a.type) == "Optional[Tensor]",
                keyword=a.kwarg_only,
                default=a.default_value if a.has_default_value() else ...,
            )
            for a in self._arguments
            if a.name in roles
        }

    @cached_property
    def results(self) -> list[str]:
        return [a.name for a in self._arguments if a.is_out]

    @cached_property
    def option_names(self) -> list[str]:
        return [a.name for a in self._arguments if a.name not in self.tensors and not a.is_out]

    @cached_property
    def rounds(self) -> bool:
        return "round_intermediates" in self.option_names

    @cached_property
    def activates(self) -> bool:
        """Has an activation of its scale, gate or result."""
        return "activation" in self.option_names

    @cached_property
    def modulates(self) -> bool:
        return "modulation" in self.option_names

    @cached_property
    def scale_offset(self) -> str:
        """The name of the number that is added to the scale which modulates."""
        return "scale_offset" if "scale_offset" in self.option_names else "next_scale_offset"

    @cached_property
    def adds_a_branch(self) -> bool:
        """To a residual, through a gate, each with a factor."""
        return "gate_activation" in self.option_names

    @cached_property
    def gates(self) -> bool:
        """Has a gate that is an input, before or after the norm, and groups."""
        return "norm_before_gate" in self.option_names

    @cached_property
    def has_channels(self) -> bool:
        """Are its rows along dimension 1? A Call has them last all the same."""
        return "form" in self.option_names

    @cached_property
    def option_defaults(self) -> dict[str, Any]:
        return {a.name: a.default_value for a in self._arguments if a.name in self.option_names}

    @cached_property
    def rotates(self) -> bool:
        return bool(self.named("angles"))

    @cached_property
    def has_segments(self) -> bool:
        """Is several norms side by side, each of an input of its own?"""
        return self.rotates and len(self.results) > 1

    def compared_with(self, name: str) -> str:
        """The input that an argument is checked against: that of its segment, or the first one."""
        segments = self.inputs if self.has_segments else []
        return next((i for i in segments if name.startswith(f"{i}_")), self.first)

    @cached_property
    def may_overwrite(self) -> list[list[str]]:
        """The inputs that each result may be written over."""
        likes = self.likes.values()
        return [[like] if self.has_segments else self.inputs for like in likes]

    @cached_property
    def in_place(self) -> list[tuple[int, str]]:
        """Results and the inputs that they may be written over."""
        return [(i, name) for i, names in enumerate(self.may_overwrite) for name in names]

    def operands_beside(self, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
        """The choices of OPERANDS that are not one another beside inputs of that dtype."""
        float32_differs = dtype != torch.float32 and len(self.operands) > 1
        return {name: o for name, o in OPERANDS.items() if name != "float32" or float32_differs}

    def named(self, *roles: Role) -> list[str]:
        return [t.name for t in self.tensors.values() if t.role in roles]

    def columns(self, name: str, dim: int) -> int:
        """Of a row of that tensor, where a row of the results has `dim`."""
        return dim // 2 if self.tensors[name].role == "angles" else dim

    @cached_property
    def first(self) -> str:
        """What the other tensors are compared with."""
        return next(iter(self.tensors))

    @cached_property
    def inputs(self) -> list[str]:
        """Of the results' shape."""
        return self.named("input", "residual", "channels")

    @cached_property
    def weights(self) -> list[str]:
        """What a norm is multiplied by."""
        return ["gamma"] if self.has_channels else self.named("weight")

    @cached_property
    def activations(self) -> list[str]:
        """Of which there are rows."""
        return self.named("input", "residual", "experts", "channels")

    @cached_property
    def residuals(self) -> list[str]:
        """May be float32 beside 16-bit inputs."""
        return self.named("residual")

    @cached_property
    def likes(self) -> dict[str, str]:
        """The tensors that results have the dtype of."""
        return LIKES[self.name]

    @cached_property
    def operands(self) -> list[str]:
        return self.named("weight", "scale", "routing_weights", "angles", "bias", "per_channel")

    @cached_property
    def broadcasting(self) -> list[str]:
        """Operands that may be broadcast."""
        return [*self.broadcasting_rows, *self.named("angles")]

    @cached_property
    def broadcasting_rows(self) -> list[str]:
        """Those of as many columns as the results have."""
        return self.named("weight", "scale", "bias")

    @cached_property
    def optional(self) -> list[str]:
        return [t.name for t in self.tensors.values() if t.optional]

    @cached_property
    def extras(self) -> list[str]:
        return EXTRAS[self.name]

    @cached_property
    def combinations_missing(self) -> list[tuple[str, ...]]:
        """All of the optional tensors that are no extras, without extras, and of the extras beside
        all others."""
        usual = [name for name in self.optional if name not in self.extras]
        without = [(*names, *self.extras) for names in subsets(usual)]
        return list(dict.fromkeys([*without, *subsets(self.extras)]))

    @cached_property
    def has_second_norm_of_a_sum(self) -> bool:
        return self.rounds and len(self.results) > 1 and not self.has_segments

    @cached_property
    def scale_kinds(self) -> list[ScaleKind]:
        return ["one", "dim", "rows"] if self.named("scale") else ["dim"]

    def call(
        self,
        leading: Sequence[int],
        dim: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        *,
        float32: str = "none",
        mixed: int = 0,
        missing: Iterable[str] = (),
        scale: ScaleKind = "dim",
        top_k: int = 3,
        seed: int = 0,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        **options: Any,
    ) -> Call:
        """`shapes` are those of tensors that have not the shape that is usual for their role.
        Channels are normalized in the form that other ops have, unless another is asked for.
        `float32` chooses among the operands. The others have the inputs' dtype or, if `mixed`, each
        the next one of DTYPES, from as many places past the inputs' on."""
        if self.has_channels:
            options = {"form": "rms"} | options
        full, across = options.get("full_tables", False), options.get("across_heads", False)
        usual, unusual = shapes_of(leading, dim, scale, top_k, full), shapes or {}
        if across:
            usual["weight"] = (leading[-1] * dim,)
        kinds = dict.fromkeys(self.tensors, dtype)
        for i, name in enumerate(self.operands if mixed else []):
            kinds[name] = DTYPES[(DTYPES.index(dtype) + mixed + i) % len(DTYPES)]
        kinds |= dict.fromkeys(self.operands[FLOAT32_OPERANDS[float32]], torch.float32)
        tensors: dict[str, Tensor | None] = {}
        for i, tensor in enumerate(self.tensors.values()):
            kind, shape = kinds[tensor.name], unusual.get(tensor.name, usual[tensor.role])
            values = randn(*shape, dtype=kind, device=device, seed=16 * seed + i)
            tensors[tensor.name] = None if tensor.name in missing else values
        return Call(self, tensors, options)


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    counts = range(len(names) + 1)
    return [chosen for n in counts for chosen in itertools.combinations(names, n)]


def broadcast(leading: Sequence[int], dim: int, kept: Sequence[bool]) -> tuple[int, ...]:
    """A shape that broadcasts to `[*leading, dim]`: of the last leading dimensions those that are
    kept, the others 1."""
    count = min(len(leading), len(kept))
    last = zip(leading[len(leading) - count :], kept[len(kept) - count :], strict=True)
    return (*(size if keep else 1 for size, keep in last), dim)


def shapes_of(
    leading: Sequence[int], dim: int, scale: ScaleKind, top_k: int, full_tables: bool = False
) -> dict[Role, tuple[int, ...]]:
    return {
        "input": (*leading, dim),
        "residual": (*leading, dim),
        "experts": (*leading, top_k, dim),
        "weight": (dim,),
        "bias": (dim,),
        "scale": {"one": (1,), "dim": (dim,), "rows": (*leading, dim)}[scale],
        "routing_weights": (*leading, top_k),
        "angles": (*leading, dim // 2 * (2 if full_tables else 1)),
        "channels": (*leading, dim),
        "per_channel": (dim,),
    }


def channels_first(t: Tensor) -> Tensor:
    """As an op of channels takes rows: `[N, C, ...]`, and one row as a batch of one."""
    return t.unsqueeze(0) if t.dim() == 1 else t.movedim(-1, 1)


def channels_last(t: Tensor, dims: int) -> Tensor:
    """Rows again, in a tensor of so many dimensions."""
    return t.squeeze(0) if dims == 1 else t.movedim(1, -1)


OPS = {name: Op(name) for name in TABLES}

each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def each_op_that(holds: Callable[[Op], Any]) -> pytest.MarkDecorator:
    chosen = [op for op in OPS.values() if holds(op)]
    return pytest.mark.parametrize("op", chosen, ids=[op.name for op in chosen])


# Ops, dtypes of the inputs, and of the operands beside them, where that differs. Each operand
# meets all dtypes beside each.
each_op_and_types = pytest.mark.parametrize(
    ("op", "dtype", "operands"),
    [
        pytest.param(op, dtype, operands, id=f"{op.name}-{str(dtype)[6:]}-{name}")
        for op in OPS.values()
        for dtype in DTYPES
        for name, operands in op.operands_beside(dtype).items()
    ],
)


@dataclass(frozen=True)
class Call:
    """An op with its arguments. Rows of all ops are along the last dimension here; channels are
    moved to where their op has them when it is called."""

    op: Op
    tensors: dict[str, Tensor | None]
    options: dict[str, Any]

    def __call__(self, out: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        function = getattr(torch_mlxnorm, self.op.name)
        single = len(self.op.results) == 1
        if out is None:
            result = function(**self.given(), **self.options)
            return self.rows_of((result,) if single else result)
        outs = tuple(map(channels_first, out)) if self.op.has_channels else tuple(out)
        given = outs[0] if single else outs
        result = function(**self.given(), **self.options, out=given)
        assert result is given
        return tuple(out)

    def prebaked(self, out: Sequence[Tensor] | None = None) -> torch_mlxnorm.Record:
        """A record of such calls."""
        written = None if out is None else tuple(self.given_outs(out).values())
        tensors = self.given().values()
        return torch_mlxnorm.prebake(self.op.name, *tensors, **self.options, out=written)

    def by(self, record: torch_mlxnorm.Record, out: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outs = tuple(self.given_outs(out).values())
        assert record(*self.given().values(), out=outs if len(outs) > 1 else outs[0]) is None
        return tuple(out)

    def given(self) -> dict[str, Tensor | None]:
        """The tensors as the op takes them."""
        return given_to(self.op, self.tensors)

    def given_outs(self, outs: Sequence[Tensor]) -> dict[str, Tensor]:
        """As the op takes them, by name."""
        moved = map(channels_first, outs) if self.op.has_channels else outs
        return dict(zip(self.op.results, moved, strict=True))

    def rows_of(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Of what the op gives, the rows."""
        if not self.op.has_channels:
            return results
        return tuple(channels_last(result, len(self.shape)) for result in results)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """For `torch.ops.mlxnorm`, which tells positional arguments from keyword-only ones."""
        takes, given = self.op.tensors.values(), self.given()
        positional = tuple(given[t.name] for t in takes if not t.keyword)
        keyword = {t.name: given[t.name] for t in takes if t.keyword}
        return positional, keyword | self.options

    @property
    def shape(self) -> torch.Size:
        """Of every result, unless they have segments of their own."""
        return self[self.op.inputs[-1]].shape

    @property
    def shapes(self) -> list[torch.Size]:
        """Of the results."""
        if self.op.has_segments:
            return [self[like].shape for like in self.op.likes.values()]
        return [self.shape] * len(self.op.results)

    @property
    def dtype(self) -> torch.dtype:
        return self[self.op.first].dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        assert tensor is not None
        return tensor

    def having(self, **tensors: Tensor | None) -> Call:
        return dataclasses.replace(self, tensors=self.tensors | tensors)

    def under(self, **options: Any) -> Call:
        return dataclasses.replace(self, options=self.options | options)

    def mapped(self, function: Any, names: Iterable[str] | None = None) -> Call:
        """With the tensors of these names, or all, replaced by what the function makes of them."""
        names = self.tensors if names is None else names
        present = [name for name in names if self.tensors[name] is not None]
        return self.having(**{name: function(self.tensors[name]) for name in present})

    def on(self, device: str) -> Call:
        return self.mapped(lambda t: t.to(device))

    @property
    def rowwise(self) -> list[str]:
        """Tensors with a row, or several, for each row of the results."""
        names = self.op.named("input", "residual", "experts", "routing_weights", "channels")
        if len(self.shape) > 1:
            whole = self.shape[:-1]
            names += [name for name in self.broadcasting if self[name].shape[:-1] == whole]
        return names

    @property
    def broadcasting(self) -> list[str]:
        """Operands that are there, and may be broadcast."""
        return [n for n in self.op.broadcasting if self.tensors[n] is not None]

    def with_leading(self, *leading: int) -> Call:
        """The same rows in other leading dimensions."""
        count = len(self.shape) - 1
        several = [n for n in self.broadcasting if self[n].shape[:-1].numel() != 1]
        whole = self.shape[:-1]
        call = self.mapped(lambda t: t.expand(*whole, t.shape[-1]), several)
        return call.mapped(lambda t: t.reshape(*leading, *t.shape[count:]), call.rowwise)

    def rows(self, index: Any) -> Call:
        """Some of the rows, where there is one leading dimension."""
        return self.mapped(lambda t: t[index], self.rowwise)

    def with_channels_apart(self) -> Call:
        """As a contiguous tensor [N, C, ...] has them."""
        return self.mapped(
            lambda t: channels_last(channels_first(t).contiguous(), t.dim()),
            self.op.named("channels"),
        )

    @property
    def may_be_contracted(self) -> bool:
        """A real GPU may fuse a product and a sum; in 16 bits the rounding between tells them
        apart. The CPU and the simulator fuse nothing."""
        on_mac = sys.platform == "darwin"
        return on_mac and self.dtype == torch.float32 and self[self.op.first].device.type == "mps"

    def empty_outs(self) -> tuple[Tensor, ...]:
        device = self[self.op.first].device
        kinds = zip(self.shapes, self.result_dtypes, strict=True)
        return tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype in kinds)

    @property
    def result_dtypes(self) -> list[torch.dtype]:
        return [self[self.op.likes[name]].dtype for name in self.op.results]

    def with_wide_residual(self) -> Call:
        return self.mapped(Tensor.float, self.op.residuals)

    @property
    def is_wide(self) -> bool:
        """Has a float32 residual beside 16-bit inputs."""
        return any(self[name].dtype != self.dtype for name in self.op.residuals)

    def reference(self) -> tuple[Tensor, ...]:
        result = getattr(reference, self.op.name)(**self.given(), **self.options)
        return self.rows_of(result if isinstance(result, tuple) else (result,))

    def steps(self, do: Steps[Any]) -> tuple[Any, ...]:
        return FORMULAS[self.op.name](do, self.tensors)

    def bounds(self, overflows: list[Tensor] | None = None) -> tuple[Interval, ...]:
        do = Bounds(self.all_options, self.dtype, [] if overflows is None else overflows)
        return self.steps(do)

    def chain(self) -> tuple[Tensor, ...]:
        """Of single ops, which round every step."""
        return self.steps(Chain(self.all_options))

    @property
    def all_options(self) -> Options:
        return Options(**self.op.option_defaults | self.options)

    @property
    def that_has_a_chain(self) -> Call:
        """With options under which single ops give the same bits: PyTorch's exp is another, and a
        sum over what is not rounded to the inputs' dtype adds it in another order."""
        options: dict[str, Any] = {"activation": "none"} if self.op.activates else {}
        if self.op.has_channels:
            options |= {"form": "rms", "silu": False}
        if self.op.adds_a_branch:
            options["gate_activation"] = "none"
        if self.op.gates and self.dtype != torch.float32:
            options["norm_before_gate"] = True
        return self.under(**options)


def given_to(op: Op, tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """As the op takes them."""
    if not op.has_channels:
        return tensors
    x = tensors[op.first]
    return tensors | {op.first: None if x is None else channels_first(x)}


def function_of(call: Call) -> Callable[[dict[str, Tensor | None]], tuple[Tensor, ...]]:
    """The call as a function of its tensors: what torch.compile of PyTorch 2.8 sees through."""
    function, options = getattr(torch_mlxnorm, call.op.name), call.options
    of_channels = call.op.first if call.op.has_channels else None

    def run(tensors: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        if of_channels is not None:
            x = tensors[of_channels]
            result = function(**{**tensors, of_channels: channels_first(x)}, **options)
            return (channels_last(result, x.dim()),)
        result = function(**tensors, **options)
        return result if isinstance(result, tuple) else (result,)

    return run


def assert_all_same_bits(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)


def run(call: Call) -> tuple[Tensor, ...]:
    """The results, which come out the same in poisoned `out` tensors, with nothing else written."""
    results = call()
    like = call[call.op.inputs[-1]]
    kinds = list(zip(call.shapes, call.result_dtypes, strict=True))
    for result, (shape, dtype) in zip(results, kinds, strict=True):
        assert result.shape == shape and result.dtype == dtype
        assert result.device == like.device
        if call.op.has_channels:  # in the memory format of x
            same = channels_last(torch.empty_like(channels_first(like)), like.dim())
            assert result.stride() == same.stride()
        else:
            assert result.is_contiguous()
    guarded = [Guarded(shape, dtype, like.device) for shape, dtype in kinds]
    outs = call(out=[g.tensor for g in guarded])
    assert_all_same_bits(outs, results)
    for g in guarded:
        g.assert_intact_around()
    return results


def check(call: Call) -> tuple[Tensor, ...]:
    """Runs the call and compares with the float64 reference, by way of the intervals: they hold the
    reference, and whatever float32 arithmetic may have computed."""
    results = run(call)
    assert_allowed(call, results)
    return results


def assert_allowed(call: Call, results: Sequence[Tensor]) -> None:
    overflows: list[Tensor] = []
    all_bounds = call.bounds(overflows)
    if not call.op.has_segments:
        overflows = [torch.stack(overflows).any(dim=0)] * len(results)
    everything = zip(call.op.results, results, all_bounds, call.reference(), overflows, strict=True)
    for name, result, bounds, exact, overflowed in everything:
        assert_within(result, bounds, f"{call.op.name}: {name}", overflowed)
        if call.options.get("round_intermediates"):
            exact = exact.to(result.dtype).double()  # as the last step of the intervals
        assert_holds(bounds, exact, unless=overflowed)


def assert_holds(bounds: Interval, exact: Tensor, unless: Tensor) -> None:
    """The interval holds the reference, which comes about by other float64 operations."""
    finite = exact.isfinite()
    slack = 2.0**-45 * (1.0 + exact.where(finite, 0.0).abs().amax(dim=-1, keepdim=True))
    holds = (bounds.low - slack <= exact) & (exact <= bounds.high + slack)
    # Infinity times something that float32 takes for zero is NaN there alone.
    holds |= (bounds.low.isnan() & ~finite) | unless
    assert holds.all(), "the oracle contradicts itself"
