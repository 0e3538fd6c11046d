"""Rows in groups: each gives the bits that it gives as a row of its own, wherever it lies."""

from __future__ import annotations

import itertools

import pytest
import torch
from ops import OPS, Call, assert_all_same_bits, broadcast, check
from tensors import LAYOUTS, randn, type_id
from test_layouts import differently_laid_out, in_layout
from test_transforms import batched, looped, vmapped
from torch import Tensor

GATED = OPS["gated_rms_norm"]


def of_rows(call: Call) -> list[Tensor]:
    """The results, from a call in which every group is a row."""
    size = call.options["group_size"]
    apart = call.mapped(lambda t: t.contiguous().unflatten(-1, (t.shape[-1] // size, size)))
    return [result.flatten(-2) for result in apart.under(group_size=0)()]


def sizes_of(dim: int) -> list[int]:
    return [n for n in range(1, dim + 1) if dim % n == 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
def test_layouts(device: str, dtype: torch.dtype, subtests: pytest.Subtests) -> None:
    for layout in LAYOUTS:
        call = in_layout(GATED, layout, dtype, device)
        for size in sizes_of(call.shape[-1]):
            with subtests.test(layout, size=size):
                grouped = call.under(group_size=size)
                expected = of_rows(grouped)
                assert_all_same_bits(check(grouped), expected)
                moved = grouped
                for i, name in enumerate(grouped.tensors):
                    moved = moved.mapped(lambda t, i=i: differently_laid_out(t, i), [name])
                assert_all_same_bits(moved(), expected)


@pytest.mark.parametrize("dim", [4096, 33_000, 40_000])
def test_long_groups(device: str, dim: int) -> None:
    """Each length has its kernel on MPS."""
    for after in (False, True):
        call = GATED.call((2,), dim, torch.float16, device, norm_before_gate=after)
        for count in (1, 2, 4):
            grouped = call.under(group_size=dim // count)
            assert_all_same_bits(check(grouped), of_rows(grouped))


def test_weights_that_broadcast(device: str) -> None:
    leading, size = (2, 3, 4), 8
    for kept in itertools.product([False, True], repeat=3):
        shapes = dict.fromkeys(GATED.broadcasting, broadcast(leading, 40, kept))
        call = GATED.call(leading, 40, torch.float16, device, shapes=shapes, group_size=size)
        assert_all_same_bits(check(call), of_rows(call))


def test_nothing_is_copied(device: str) -> None:
    """With two leading dimensions that do not fold, and groups for a third."""
    call = GATED.call((3, 4), 48, torch.float16, device, group_size=16)
    slices = call.mapped(lambda t: differently_laid_out(t, 0))
    slices = slices.mapped(lambda t: t.transpose(0, 1), ["x", "gate"])
    outs = slices.empty_outs()
    with torch.autograd.profiler.profile() as profile:
        slices(out=outs)
    assert not [event.name for event in profile.function_events if "aten::" in event.name]
    assert_all_same_bits(outs, of_rows(slices))


def test_in_place(device: str) -> None:
    for after, name in itertools.product([False, True], ["x", "gate"]):
        call = GATED.call((5,), 48, torch.bfloat16, device, group_size=16, norm_before_gate=after)
        expected = call()
        assert_all_same_bits(call(out=[call[name]]), expected)


def test_strided_outs(where: str) -> None:
    """Groups are one of three dimensions."""
    call = GATED.call((2, 3, 2), 24, torch.float32, where)
    few = torch.zeros(2, 3, 2, 30, device=where)[..., 3:27]
    many = torch.zeros(2, 4, 3, 30, device=where)[:, :3, :2, 3:27]
    for size in (0, 24, 8, 1):
        grouped = call.under(group_size=size)
        expected = grouped()
        grouped(out=[few])
        if where != "meta":
            assert_all_same_bits([few], expected)
        if size in (0, 24):
            grouped(out=[many])
            continue
        with pytest.raises(RuntimeError) as raised:
            grouped(out=[many])
        text = "leading dimensions that fold into at most three, one of them that of its groups"
        assert f"gated_rms_norm: out must have {text}, got strides" in str(raised.value)


def test_no_rows(where: str) -> None:
    call = GATED.call((0, 3), 8, torch.float32, where, group_size=4)
    assert call()[0].shape == (0, 3, 8)


def test_vmap(device: str) -> None:
    call = GATED.call((2,), 24, torch.float32, device, group_size=8)
    for batches in itertools.product([None, 0], repeat=len(call.tensors)):
        dims = dict(zip(call.tensors, batches, strict=True))
        if any(dim is not None for dim in batches):
            assert_all_same_bits(
                vmapped(batched(call, dims), dims), looped(batched(call, dims), dims)
            )


def test_nested(device: str) -> None:
    parts = [GATED.call((n,), 24, torch.float32, device, seed=n, group_size=8) for n in (2, 5)]
    weight = randn(24, device=device)

    x = torch.nested.nested_tensor([part["x"] for part in parts], layout=torch.jagged)
    gates = torch.cat([part["gate"] for part in parts])
    gate = torch.nested.nested_tensor_from_jagged(gates, x.offsets())
    shared = {"weight": weight, "bias": -weight}
    together = parts[0].having(x=x, gate=gate, **shared)
    (result,) = together()
    for part, own in zip(parts, result.unbind(), strict=True):
        assert_all_same_bits([own], part.having(**shared)())


def test_compiled(device: str) -> None:
    """Sizes are symbols; group_size is a number."""

    def run(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.mlxnorm.gated_rms_norm(x, gate, weight, bias=bias, group_size=8)

    compiled = torch.compile(run, backend="aot_eager", dynamic=True, fullgraph=True)
    with torch.no_grad():
        for rows, dim in ((2, 16), (3, 24), (5, 40)):
            call = GATED.call((rows,), dim, torch.float32, device, group_size=8)
            assert_all_same_bits([compiled(*call.tensors.values())], call())
