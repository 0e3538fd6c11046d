"""Random calls of the ops, each with everything that a call can be asked for: what hypothesis draws
(test_properties) and what the fuzzer counts through (fuzz)."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from ops import OPS, Call, Op, Role, ScaleKind, assert_all_same_bits, broadcast, check, shapes_of
from oracle import assert_same_bits
from tensors import DTYPES, assert_only_written
from torch import Tensor

# Short and odd lengths, and the ends of lanes, words, blocks and kernels.
DIMS = [*range(1, 41), 63, 64, 65, 127, 128, 192, 256, 513, 600]
LONG_DIMS = [1000, 2816, 4097, 8192, 8200, 16384, 32776, 40001]

SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e4, -1e4, 65504.0, 1.0, 1e30]
# Denormals of float16, bfloat16 and float32. A GPU may take the last two for zero.
DENORMAL = [6e-8, -3e-5] + ([] if sys.platform == "darwin" else [1e-39, -1e-40, 1e-45])
MAGNITUDES = {
    torch.float32: [1e-3, 1e4, 1e-20, 1e18, 1e25, 1e30],  # squares vanish, or overflow
    torch.bfloat16: [1e-3, 1e4, 1e-20, 1e18, 1e25, 1e30],
    torch.float16: [1e-7, 1e-3, 1e4],
}


@dataclass(frozen=True)
class Layout:
    """Steps through memory: order of the dimensions, elements left out, dimensions expanded."""

    order: tuple[int, ...]
    steps: tuple[int, ...]
    padding: tuple[int, ...]
    expanded: tuple[bool, ...]
    offset: int

    @staticmethod
    def random(random: Random, rank: int) -> Layout | None:
        """None: contiguous."""
        if rank == 0 or random.choice([False, True]):
            return None
        rows_in_place = random.choice([False, True])
        steps = [random.choice([1, 1, 2, 3]) for _ in range(rank)]
        if rows_in_place:
            steps[-1] = 1
            order = [*random.sample(range(rank - 1), rank - 1), rank - 1]
        else:
            order = random.sample(range(rank), rank)
        return Layout(
            tuple(order),
            tuple(steps),
            padding=tuple(random.choice([0, 0, 1, 5]) for _ in range(rank)),
            expanded=tuple(random.choice([False, False, True]) for _ in range(rank)),
            offset=random.choice([0, 1, 8]),
        )

    @staticmethod
    def of_out(random: Random, rank: int, rows_in_place: bool = True) -> Layout:
        """Each element once, in any order of the dimensions but for that of rows."""
        last = [rank - 1] if rows_in_place else []
        others = range(rank - len(last))
        return Layout(
            (*random.sample(others, len(others)), *last),
            (1,) * rank,
            padding=tuple(random.choice([0, 0, 1, 8]) for _ in range(rank)),
            expanded=(False,) * rank,
            offset=random.choice([0, 1, 8]),
        )

    def __call__(self, t: Tensor) -> Tensor:
        """The values of t laid out so; along expanded dimensions those of index 0."""
        shape = t.shape
        for d, expanded in enumerate(self.expanded):
            if expanded and shape[d] > 0:
                t = t.narrow(d, 0, 1)
        sizes = [t.shape[d] * self.steps[d] + self.padding[d] for d in self.order]
        storage = torch.zeros(math.prod(sizes) + self.offset, dtype=t.dtype, device=t.device)
        view = (
            storage[self.offset :]
            .view(sizes)
            .permute([self.order.index(d) for d in range(t.dim())])
        )
        steps = zip(t.shape, self.steps, strict=True)
        view = view[tuple(slice(0, size * step, step) for size, step in steps)]
        return view.copy_(t).expand(shape)


@dataclass(frozen=True)
class Case:
    """A call and all that is checked of it, as plain values: printed, it can be run again."""

    op: str
    leading: tuple[int, ...]
    dim: int
    dtype: torch.dtype
    seed: int = 0
    kinds: Mapping[str, torch.dtype] = field(default_factory=dict)  # of operands, unless dtype
    missing: tuple[str, ...] = ()
    scale: ScaleKind = "dim"
    ones: int = 0  # dimensions of a scale of one element, beyond the last
    # Of the last leading dimensions, those that an operand has; along others it is broadcast.
    kept: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    rotated: float = 1.0  # how much of a row
    other_heads: int = 0  # of inputs but the first, where they may be other than leading[-1]
    top_k: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    constant: tuple[str, ...] = ()  # tensors whose elements are all alike
    magnitude: float = 1.0  # of the activations
    planted: tuple[tuple[str, int, float], ...] = ()  # name, position, value
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    in_place: Mapping[int, str] = field(default_factory=dict)  # results written over inputs
    outs: Mapping[int, Layout] = field(default_factory=dict)  # of results

    def ranks(self) -> dict[str, int]:
        """Dimensions of each tensor that is there."""
        usual, unusual = self._usual(), self._unusual()
        tensors = [t for t in OPS[self.op].tensors.values() if t.name not in self.missing]
        return {t.name: len(unusual.get(t.name, usual[t.role])) for t in tensors}

    def _usual(self) -> dict[Role, tuple[int, ...]]:
        """Shapes by role."""
        shapes = shapes_of(self.leading, self.dim, self.scale, self.top_k)
        if self.options.get("across_heads"):
            shapes["weight"] = (self.leading[-1] * self.dim,)
        pairs = int(self.rotated * (self.dim // 2))
        columns = pairs * (2 if self.options.get("full_tables") else 1)
        return shapes | {"angles": (*self.leading, columns)}

    def _unusual(self) -> dict[str, tuple[int, ...]]:
        """Those of tensors that have others."""
        op = OPS[self.op]
        usual, whole = self._usual(), op.named("scale") if self.scale != "dim" else []
        names = [name for name in self.kept if name not in whole]
        shapes = {name: usual["angles"] for name in op.named("angles")}
        for name in names:
            role = op.tensors[name].role
            across = self.options.get("across_heads") and role == "weight"
            leading = self.leading[:-1] if across else self.leading
            shapes[name] = broadcast(leading, usual[role][-1], self.kept[name])
        if self.other_heads:
            shapes |= self._of_other_heads(op, shapes)
        ones = op.named("scale") if self.scale == "one" else []
        return shapes | dict.fromkeys(ones, (1,) * (1 + self.ones))

    def _of_other_heads(
        self, op: Op, unusual: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[int, ...]]:
        """Inputs but the first, their weights, and tables that are the same for all heads."""
        inputs = dict.fromkeys(op.inputs[1:], (*self.leading[:-1], self.other_heads, self.dim))
        operands = {}
        for name in (*op.named("weight")[1:], *op.named("angles")):
            role = op.tensors[name].role
            *leading, columns = unusual.get(name, self._usual()[role])
            if self.options.get("across_heads") and role == "weight":
                columns = self.other_heads * self.dim
            elif leading:
                leading[-1] = 1
            operands[name] = (*leading, columns)
        return inputs | operands

    def contiguous(self, device: str) -> Call:
        op = OPS[self.op]
        call = op.call(
            self.leading,
            self.dim,
            missing=self.missing,
            scale=self.scale,
            top_k=self.top_k,
            seed=self.seed,
            shapes=self._unusual(),
            **self.options,
        )
        call = call.mapped(lambda t: t.flatten()[:1].sum().expand(t.shape).clone(), self.constant)
        call = call.mapped(lambda t: self.magnitude * t, op.activations)
        for name, tensor in call.tensors.items():
            if tensor is not None:
                call = call.having(**{name: tensor.to(self.kinds.get(name, self.dtype))})
        for name, position, value in self.planted:
            if (tensor := call.tensors[name]) is not None and tensor.numel() > 0:
                tensor.view(-1)[position % tensor.numel()] = value
        return call.on(device)

    def call(self, device: str) -> Call:
        call = self.contiguous(device)
        for name, layout in self.layouts.items():
            call = call.mapped(layout, [name])
        return call

    def simpler(self) -> Iterator[Case]:
        """The same with something less."""

        def less(**changes: Any) -> Iterator[Case]:
            if any(getattr(self, name) != value for name, value in changes.items()):
                yield dataclasses.replace(self, **changes)

        yield from less(in_place={})
        yield from less(outs={})
        yield from less(layouts={})
        for name in self.layouts:
            yield from less(layouts={k: v for k, v in self.layouts.items() if k != name})
        yield from less(planted=())
        for i in range(len(self.planted)):
            yield from less(planted=self.planted[:i] + self.planted[i + 1 :])
        yield from less(options={})
        for name in self.options:
            yield from less(options={k: v for k, v in self.options.items() if k != name})
        yield from less(magnitude=1.0)
        yield from less(constant=())
        yield from less(kinds={})
        yield from less(ones=0)
        yield from less(kept={})
        yield from less(missing=())
        yield from less(scale="dim")
        yield from less(rotated=1.0)
        yield from less(top_k=1)
        yield from less(other_heads=0)
        if not self.layouts and not self.outs and not self.options.get("across_heads"):
            yield from less(leading=())
            yield from less(leading=self.leading[1:])
            yield from less(leading=tuple(min(n, 1) for n in self.leading))
        for dim in (1, self.dim // 2, self.dim - 1):
            if dim >= 1 and dim % (self.options.get("group_size") or 1) == 0:
                yield from less(dim=dim)


# ---- drawing ------------------------------------------------------------------------------------


def random_case(random: Random, op: Op | None = None, long_rows: float = 0.0) -> Case:
    """Any valid call; a share of them has long rows, or so many that threads share them."""
    op = op or random.choice(list(OPS.values()))
    dtype = random.choice(DTYPES)
    leading = tuple(random.choice([1, 2, 3, 5, 2, 3, 4, 0]) for _ in range(random.randint(0, 4)))
    dim = random.choice(DIMS)
    if long_rows and random.random() < long_rows:
        leading, dim = random.choice([(), (1,), (2,)]), random.choice(LONG_DIMS)
        if random.random() < 0.3:
            leading, dim = (random.randint(50, 200),), random.choice([64, 192, 600])
    case = Case(
        op.name,
        leading,
        dim,
        dtype,
        seed=random.randint(0, 999),
        kinds=_kinds(random, op, dtype),
        missing=_missing(random, op),
        scale=random.choice(op.scale_kinds),
        ones=random.choice([0, 0, 1, 2]),
        kept={
            name: tuple(random.choice([False, True]) for _ in range(random.randint(0, 4)))
            for name in op.broadcasting
            if random.choice([False, True])
        },
        rotated=random.choice([1.0, 1.0, 0.5, 0.3]),
        other_heads=random.choice([0, 1, 2, 5]) if op.has_segments and leading else 0,
        top_k=random.randint(1, 5),
        options=_options(random, op, leading, dim),
        constant=tuple(name for name in op.tensors if random.randint(0, 15) == 0),
        magnitude=random.choice([1.0] * 8 + MAGNITUDES[dtype]),
        in_place=_in_place(random, op),
    )
    present = [name for name in op.tensors if name not in case.missing]
    special = random.sample(present, random.choice([0, 0, 1, min(2, len(present))]))
    planted = [
        (name, random.randint(0, 10**6), random.choice(SPECIAL + DENORMAL))
        for name in special
        for _ in range(random.randint(1, 4))
    ]
    layouts = {name: Layout.random(random, rank) for name, rank in case.ranks().items()}
    layouts = {name: layout for name, layout in layouts.items() if layout is not None}
    outs = {}
    if case.options.get("across_heads"):
        pass  # heads of a result lie one after another
    elif len(leading) + bool(case.options.get("group_size")) <= 3:  # they fold
        some = [i for i in range(len(op.results)) if random.choice([False, True])]
        in_place = not op.has_channels
        outs = {i: Layout.of_out(random, len(leading) + 1, in_place) for i in some}
    vanishes = op.gates and case.options["activation"] != "none"  # a gate may, once activated
    if not (planted or vanishes) and case.magnitude >= 1.0 and random.randint(0, 7) == 0:
        # Not beside squares that float32 cannot hold: their mean is nothing to divide by.
        case.options["eps"] = 0.0
    return dataclasses.replace(case, planted=tuple(planted), layouts=layouts, outs=outs)


def _kinds(random: Random, op: Op, dtype: torch.dtype) -> dict[str, torch.dtype]:
    kinds = {name: random.choice([dtype, *DTYPES]) for name in op.operands}
    return kinds | {name: random.choice([dtype, torch.float32]) for name in op.residuals}


def _missing(random: Random, op: Op) -> tuple[str, ...]:
    missing = [name for name in op.optional if random.randint(0, 3) == 0]
    if op.extras and random.choice([False, True]):
        missing += [name for name in op.extras if name not in missing]
    return tuple(missing)


def _options(random: Random, op: Op, leading: tuple[int, ...], dim: int) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "eps": random.choice([1e-6, 1e-5, 1e-2]),
        "weight_offset": random.choice([0.0, 1.0, -0.5]),
        "casting_mode": random.choice(["gemma", "llama"]),
    }
    if op.rounds:
        chosen["round_intermediates"] = random.choice([False, True])
    if op.modulates:
        chosen[op.scale_offset] = random.choice([1.0, 0.0, 0.5])
        chosen["modulation"] = random.choice(["steps", "addcmul", "once"])
    if op.rotates:
        chosen["interleaved"] = random.choice([False, True])
        chosen["full_tables"] = random.choice([False, True])
        across = len(leading) > 0 and leading[-1] > 0
        chosen["across_heads"] = across and random.choice([False, False, True])
        chosen["rope_rounding"] = random.choice(["once", "products", "addcmul"])
    if op.activates:
        chosen["activation"] = random.choice(["none", "silu", "gelu_tanh", "sigmoid"])
    if op.has_channels:
        chosen["form"] = random.choice(["rms", "rms_steps", "normalize", "normalize_float32"])
        chosen["silu"] = random.choice([False, True])
    if op.adds_a_branch:
        chosen["gate_activation"] = random.choice(["none", "tanh", "sigmoid"])
        chosen["alpha"] = random.choice([1.0, 1.0, 0.22, -3.5])
        chosen["beta"] = random.choice([1.0, 1.0, 1.7])
    if op.gates:
        chosen["norm_before_gate"] = random.choice([False, True])
        counts = [n for n in (1, 2, 3, 4, 8, 16, dim) if dim % n == 0]
        chosen["group_size"] = random.choice([0, *(dim // n for n in counts)])
    return chosen


def _in_place(random: Random, op: Op) -> dict[int, str]:
    count = random.randint(0, min(len(op.results), len(op.inputs)))
    if op.has_segments:
        return dict(random.sample(op.in_place, count))
    written = random.sample(range(len(op.results)), count)
    return dict(zip(written, random.sample(op.inputs, count), strict=True))


# ---- checking -----------------------------------------------------------------------------------


def check_case(case: Case, device: str) -> None:
    """Everything that holds of any call. Results are what float64 gives, in new tensors and in
    `out` tensors with nothing written around them; arguments stay as they are; a bit depends on
    values alone, not on layout, other rows, fusion or way of calling."""
    call = case.call(device)
    with untouched(call):
        results = check(call)
        packed = call.mapped(Tensor.contiguous)
        if case.layouts:
            assert_all_same_bits(packed(), results)
        check_a_row(packed, case.seed, results)
        check_chain(packed)
        check_record(packed, results)
    check_in_place(packed, case.in_place, results)
    check_outs(packed, case.outs, results)


def check_a_row(call: Call, which: int, results: tuple[Tensor, ...]) -> None:
    """A row alone gives the bits that it gives among others."""
    count = call.shape[:-1].numel()
    of_one_row = not call.options.get("across_heads") and len(set(call.shapes)) == 1
    if count > 0 and of_one_row:
        alone = call.with_leading(count).rows(which % count)()
        for a, result in zip(alone, results, strict=True):
            assert_same_bits(a, result.reshape(count, -1)[which % count])


def check_chain(call: Call) -> None:
    """Rounding every step gives the bits of the single ops."""
    call = call.that_has_a_chain
    if call.is_wide and len(call.op.results) > 1:
        return  # the norm of a float32 sum, which single ops add in another order
    if not call.may_be_contracted:
        rounding = call.under(round_intermediates=True) if call.op.rounds else call
        assert_all_same_bits(rounding(), call.chain())


def check_record(call: Call, results: tuple[Tensor, ...]) -> None:
    """A record gives the bits of the op, or says that the op copies what it is given: rows of a
    weight that is broadcast in the middle cannot always be addressed."""
    outs = call.empty_outs()
    try:
        record = call.prebaked(outs)
    except RuntimeError as error:
        assert "would be copied at every call" in str(error)
        return
    assert_all_same_bits(call.by(record, outs), results)


def check_in_place(call: Call, in_place: Mapping[int, str], results: tuple[Tensor, ...]) -> None:
    outs = list(call.empty_outs())
    in_place = {i: name for i, name in in_place.items() if outs[i].dtype == call[name].dtype}
    if in_place:
        overwritten = call.mapped(torch.clone, in_place.values())
        for i, name in in_place.items():
            outs[i] = overwritten[name]
        assert_all_same_bits(overwritten(out=outs), results)


def check_outs(call: Call, layouts: Mapping[int, Layout], results: tuple[Tensor, ...]) -> None:
    """Results that are strided have the same bits, with nothing written between them."""
    outs = [torch.zeros_like(out) for out in call.empty_outs()]
    for i, layout in layouts.items():
        outs[i] = layout(outs[i])
    assert_all_same_bits(call(out=outs), results)
    for i in layouts:
        assert_only_written(outs[i], 0.0)


@contextmanager
def untouched(call: Call) -> Iterator[None]:
    """No byte of the arguments' storages changes."""
    before = {name: _whole_storage(t) for name, t in call.tensors.items() if t is not None}
    yield
    for name, storage in before.items():
        assert torch.equal(_whole_storage(call[name]), storage), f"{name} was written to"


def _whole_storage(t: Tensor) -> Tensor:
    count = t.untyped_storage().nbytes() // t.element_size()
    whole = t.as_strided((count,), (1,), 0).cpu()
    return whole.view({4: torch.int32, 2: torch.int16}[t.element_size()]).clone()
