"""Where tensors may lie in memory: any strides and offsets give the bits of contiguous tensors."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from ops import (
    OPERANDS,
    Call,
    Op,
    assert_all_same_bits,
    broadcast,
    check,
    each_op,
    each_op_that,
    run,
)
from tensors import BASE, LAYOUTS, randn, type_id
from torch import Tensor


def in_layout(op: Op, layout: str, dtype: torch.dtype, device: str) -> Call:
    """A call whose first tensor has this layout. The others are contiguous."""

    def laid_out(seed: int) -> Tensor:
        return LAYOUTS[layout](randn(*BASE, dtype=dtype, device=device, seed=seed))

    shape = laid_out(0).shape
    experts = op.tensors[op.first].role == "experts"
    if experts and len(shape) == 1:
        shape = (1, *shape)
    leading, top_k = (shape[:-2], shape[-2]) if experts else (shape[:-1], 1)
    scale = op.scale_kinds[-1]
    call = op.call(leading, shape[-1], dtype, device, top_k=top_k, scale=scale, mixed=1)
    return call.having(**{op.first: laid_out(0).view(shape)})


def differently_laid_out(t: Tensor, i: int) -> Tensor:
    """The same values with other strides."""
    if i % 3 == 0:  # rows apart
        rows = torch.empty(*t.shape[:-1], t.shape[-1] + 3, dtype=t.dtype, device=t.device)
        return rows[..., 1:-2].copy_(t)
    if i % 3 == 1:  # leading dimensions the other way round, which may not fold
        order = [*reversed(range(t.dim() - 1)), t.dim() - 1]
        return torch.empty_like(t.permute(order).contiguous()).permute(order).copy_(t)
    every_other = torch.empty(*t.shape, 2, dtype=t.dtype, device=t.device)
    return every_other[..., 0].copy_(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@each_op
def test_layouts(device: str, op: Op, dtype: torch.dtype, subtests: pytest.Subtests) -> None:
    for layout in LAYOUTS:
        with subtests.test(layout):
            assert_layout_changes_nothing(in_layout(op, layout, dtype, device))


def assert_layout_changes_nothing(call: Call) -> None:
    results = check(call)
    contiguous = call.mapped(lambda t: t.contiguous())
    assert_all_same_bits(contiguous(), results)
    # All tensors with a row for each row of the results, each in a layout of its own.
    for shift in range(3):
        moved = contiguous
        for i, name in enumerate(contiguous.rowwise):
            moved = moved.mapped(lambda t, i=i + shift: differently_laid_out(t, i), [name])
        assert_all_same_bits(moved(), results)


@each_op
def test_strided_operands(device: str, op: Op) -> None:
    """What all rows share."""
    call = op.call((3,), 40, torch.float32, device)
    strided = call.mapped(lambda t: differently_laid_out(t, 2), op.broadcasting)
    assert_all_same_bits(strided(), call())
    expanded = call.mapped(lambda t: t[:1].expand(40), op.broadcasting_rows)
    assert_all_same_bits(expanded(), expanded.mapped(lambda t: t.contiguous())())


@each_op_that(lambda op: op.adds_a_branch)
def test_a_gate_that_some_rows_share(device: str, op: Op) -> None:
    """And others have another: what is kept for some is not for all."""
    shapes = {"gate": (2, 1, 40)}
    for activation in ("tanh", "sigmoid"):
        call = op.call((2, 3), 40, torch.float32, device, shapes=shapes, gate_activation=activation)
        check(call)


SHAPES_OF_ONE = [(), (1,), (1, 1, 1)]
SHAPES_OF_DIM = [(40,), (1, 40), (1, 1, 1, 40)]


@pytest.mark.parametrize("operands", ["same", "mixed"])
@each_op_that(lambda op: op.named("scale"))
def test_the_shape_decides_what_a_scale_is(device: str, op: Op, operands: str) -> None:
    for kind, shapes in (("one", SHAPES_OF_ONE), ("dim", SHAPES_OF_DIM)):
        call = op.call((3,), 40, torch.float16, device, scale=kind, **OPERANDS[operands])
        expected = check(call)
        for name, shape in itertools.product(op.named("scale"), shapes):
            assert_all_same_bits(call.mapped(lambda t, s=shape: t.view(s), [name])(), expected)


VIEWS = {"aten::movedim", "aten::permute", "aten::as_strided"}  # of rows, by the test
LEADING = (2, 3, 4)
KEPT = [kept for rank in range(4) for kept in itertools.product([False, True], repeat=rank)]


@pytest.mark.parametrize("operands", ["same", "mixed"])
@each_op
def test_what_is_broadcast_is_read_where_it_is(device: str, op: Op, operands: str) -> None:
    """Along any dimensions, each operand along others."""
    for i in range(len(KEPT)):
        names = op.broadcasting
        kept = {name: KEPT[(i - 4 * n) % len(KEPT)] for n, name in enumerate(names)}
        shapes = {name: broadcast(LEADING, op.columns(name, 40), k) for name, k in kept.items()}
        call = op.call(LEADING, 40, torch.float16, device, shapes=shapes, **OPERANDS[operands])
        outs = call.empty_outs()
        with torch.autograd.profiler.profile() as profile:
            call(out=outs)
        called = {event.name for event in profile.function_events if "aten::" in event.name}
        assert called <= (VIEWS if op.has_channels else set())
        assert_all_same_bits(outs, check(call))
        whole = call.mapped(lambda t: t.expand(*LEADING, -1).contiguous(), names)
        assert_all_same_bits(outs, whole())


@each_op
def test_what_is_broadcast_along_alternating_dimensions(device: str, op: Op) -> None:
    """More of them than a layout has."""
    leading = (2, 3, 2, 3, 2)
    for kept in itertools.product([False, True], repeat=len(leading)):
        names = op.broadcasting
        shapes = {name: broadcast(leading, op.columns(name, 20), kept) for name in names}
        check(op.call(leading, 20, torch.bfloat16, device, shapes=shapes))


@each_op
def test_ranks(device: str, op: Op) -> None:
    """One row or many, in any number of leading dimensions."""
    for leading in [(), (1,), (2, 1, 3), (1, 2, 1, 3, 1)]:
        for dim in (1, 20):
            run(op.call(leading, dim, torch.bfloat16, device))
    flat = op.call((6,), 20, torch.bfloat16, device)
    folded = flat.with_leading(2, 1, 3)
    assert_all_same_bits(folded(), [result.view(2, 1, 3, 20) for result in flat()])


@pytest.mark.parametrize("leading", [(0,), (3, 0), (0, 0)])
@each_op
def test_no_rows(device: str, op: Op, leading: tuple[int, ...]) -> None:
    for dim in (1, 8):
        for scale in op.scale_kinds:
            results = run(op.call(leading, dim, torch.float32, device, scale=scale))
            assert all(result.shape == (*leading, dim) for result in results)


# Lazily mapped: only the pages of the rows are ever touched.
HUGE = 2**32 + 2**16


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=type_id)
@each_op
def test_offsets_past_32_bits(device: str, op: Op, dtype: torch.dtype) -> None:
    try:
        storage = torch.empty(HUGE, dtype=dtype, device=device)
    except RuntimeError as error:
        if sys.platform != "darwin":
            raise
        pytest.skip(f"this Mac refuses a buffer of that size: {error}")
    call = op.call((3,), 96, dtype, device, scale=op.scale_kinds[-1])
    expected = call()
    rowwise = [name for name in call.rowwise if name not in op.named("routing_weights")]
    far = 2**31 + 8

    by_offset, by_stride = call, call
    for i, name in enumerate(rowwise):
        rows = call[name]
        end = HUGE - 1024 * (i + 1)  # experts have 864 elements, others 288
        by_offset = by_offset.having(**{name: storage[end : end + rows.numel()].view(rows.shape)})
        by_offset[name].copy_(rows)
    assert_all_same_bits(by_offset(), expected)
    for i, name in enumerate(rowwise):
        rows = call[name]
        strides = (far, *rows.stride()[1:])
        spread = storage.as_strided(rows.shape, strides, 1024 * i)
        by_stride = by_stride.having(**{name: spread.copy_(rows)})
    assert_all_same_bits(by_stride(), expected)
    if rows := op.named("experts"):
        experts = call[rows[0]]
        spread = storage.as_strided(experts.shape, (96, far, 1)).copy_(experts)
        assert_all_same_bits(call.having(**{rows[0]: spread})(), expected)

    outs = [storage[2**32 + 512 * i :][:288].view(3, 96) for i in range(len(op.results))]
    assert_all_same_bits(call(out=outs), expected)
