"""Properties that hold for any tensors, of any layout, values and options (hypothesis)."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ops import FLOAT32_OPERANDS, OPS, Call, Op, assert_all_same_bits, check
from oracle import assert_same_bits
from tensors import DTYPES
from torch import Tensor

# The same examples in every run, so that CI fails for what changed.
repeatable = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    print_blob=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Short and odd lengths, and the ends of lanes, words and blocks.
DIMS = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 192, 256, 513, 600]))
LEADING = st.lists(st.sampled_from([1, 2, 3, 5, 2, 3, 4, 0]), max_size=4)
MAGNITUDES = st.sampled_from([1.0, 1.0, 1e-3, 1e4])
SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e4, -1e4, 65504.0, 1.0]
# Denormals of float16, bfloat16 and float32. A GPU may take the last two for zero.
DENORMAL = [6e-8, -3e-5] + ([] if sys.platform == "darwin" else [1e-39, -1e-40, 1e-45])


@dataclass(frozen=True)
class Layout:
    """Steps through memory: order of the dimensions, elements left out, dimensions expanded."""

    order: list[int]
    steps: list[int]
    padding: list[int]
    expanded: list[bool]
    offset: int

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


@st.composite
def layouts(draw: st.DrawFn, rank: int) -> Layout | None:
    if rank == 0 or draw(st.booleans()):
        return None  # contiguous
    rows_in_place = draw(st.booleans())
    order = draw(st.permutations(range(rank - 1))) + [rank - 1]
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3]), min_size=rank, max_size=rank))
    if rows_in_place:
        steps[-1] = 1
    else:
        order = draw(st.permutations(range(rank)))
    padding = draw(st.lists(st.sampled_from([0, 0, 1, 5]), min_size=rank, max_size=rank))
    expanded = draw(st.lists(st.sampled_from([False, False, True]), min_size=rank, max_size=rank))
    return Layout(order, steps, padding, expanded, draw(st.sampled_from([0, 1, 8])))


@st.composite
def options(draw: st.DrawFn, op: Op) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "weight_offset": draw(st.sampled_from([0.0, 1.0, -0.5])),
        "casting_mode": draw(st.sampled_from(["gemma", "llama"])),
    }
    if op.rounds:
        chosen["round_intermediates"] = draw(st.booleans())
    if op.activates:
        chosen["activation"] = draw(st.sampled_from(["none", "silu", "gelu_tanh", "sigmoid"]))
    return chosen


@st.composite
def calls(draw: st.DrawFn, op: Op) -> Call:
    """On the CPU, every tensor contiguous."""
    call = op.call(
        draw(LEADING),
        draw(DIMS),
        draw(st.sampled_from(DTYPES)),
        float32=draw(st.sampled_from(list(FLOAT32_OPERANDS))),
        missing=draw(st.sets(st.sampled_from(op.optional))) if op.optional else (),
        scale=draw(st.sampled_from(op.scale_kinds)),
        top_k=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 999)),
        **draw(options(op)),
    )
    magnitude = draw(MAGNITUDES)
    call = call.mapped(lambda t: magnitude * t, op.named("activation", "experts"))
    present = [name for name, t in call.tensors.items() if t is not None and t.numel() > 0]
    for name in draw(st.sets(st.sampled_from(present), max_size=2)) if present else ():
        values = call[name].view(-1)
        for value in draw(st.lists(st.sampled_from(SPECIAL + DENORMAL), min_size=1, max_size=4)):
            values[draw(st.integers(0, len(values) - 1))] = value
    return call


@pytest.fixture(params=OPS.values(), ids=OPS)
def op(request: pytest.FixtureRequest) -> Op:
    return request.param


@repeatable
@given(data=st.data())
def test_any_tensors(device: str, op: Op, data: st.DataObject) -> None:
    """What float64 gives, from tensors laid out in any way, whose bits depend on values alone."""
    contiguous = data.draw(calls(op)).on(device)
    laid_out = contiguous
    for name, tensor in contiguous.tensors.items():
        if tensor is not None and (layout := data.draw(layouts(tensor.dim()), label=name)):
            laid_out = laid_out.having(**{name: layout(tensor)})
    results = check(laid_out)
    assert_all_same_bits(laid_out.mapped(lambda t: t.contiguous())(), results)


@repeatable
@given(data=st.data())
def test_any_row(device: str, op: Op, data: st.DataObject) -> None:
    """Alone, and through the chain of single ops."""
    call = data.draw(calls(op)).on(device)
    call = call.under(round_intermediates=True) if op.rounds else call
    results = call()
    if call.options.get("activation", "none") == "none" and not call.may_be_contracted:
        assert_all_same_bits(results, call.chain())
    count = call.shape[:-1].numel()
    if count > 0:
        row = data.draw(st.integers(0, count - 1), label="row")
        alone = call.with_leading(count).rows(row)()
        for a, result in zip(alone, results, strict=True):
            assert_same_bits(a, result.reshape(count, -1)[row])
