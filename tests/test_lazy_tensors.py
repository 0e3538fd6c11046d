"""Tensors whose values are not what lies in memory: pending negations and conjugations, zeros
without memory. Inputs give what their clones give; outs are written, or refused with one error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from ops import Op, assert_all_same_bits, each_op, each_op_that, function_of
from tensors import randn
from torch import Tensor

from torch_mlxnorm import RmsNormRecord


def pending_negation(shape: Sequence[int], dtype: torch.dtype, device: object) -> Tensor:
    """What `z.conj().imag` is of a complex z: every other element of its memory, negated."""
    memory = torch.zeros(*shape, 2, dtype=dtype, device=device)
    return torch._neg_view(memory[..., 1])


def negated(t: Tensor) -> Tensor:
    """The same values behind a pending negation."""
    view = pending_negation(t.shape, t.dtype, t.device).copy_(t)
    assert view.is_neg() and torch.equal(view.cpu(), t.cpu())
    return view


def negated_contiguous(t: Tensor) -> Tensor:
    """The same, of which nobody has to make a contiguous copy, where the negation would go."""
    view = torch._neg_view(t.neg())
    assert view.is_neg() and view.is_contiguous()
    return view


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@each_op
def test_negated_inputs(device: str, op: Op, dtype: torch.dtype) -> None:
    call = op.call((2, 3), 8, dtype, device, scale=op.scale_kinds[-1])
    expected = call()
    for names in [*([name] for name in op.tensors), list(op.tensors)]:
        assert_all_same_bits(call.mapped(negated_contiguous, names)(), expected)
        lazy = call.mapped(negated, names)
        assert_all_same_bits(lazy(), expected)
        assert_all_same_bits(lazy(out=call.empty_outs()), expected)


@each_op
def test_imaginary_part_of_a_conjugate_as_out(op: Op) -> None:
    call = op.call((4,), 8)
    z = [torch.zeros(4, 8, dtype=torch.complex64) for _ in op.results]
    expected = call()
    call(out=[t.conj().imag for t in z])
    assert_all_same_bits([-t.imag for t in z], expected)
    assert all(t.real.eq(0.0).all() for t in z)


@each_op
def test_negated_outs(where: str, op: Op) -> None:
    call = op.call((2, 3), 8, torch.float32, where)
    expected = call()
    for indices in [*([i] for i in range(len(expected))), list(range(len(expected)))]:
        outs = list(call.empty_outs())
        for i in indices:
            outs[i] = pending_negation(call.shape, call.dtype, where)
        versions = [out._version for out in outs]
        returned = call(out=outs)
        assert all(a is b for a, b in zip(returned, outs, strict=True))
        assert all(out._version > v for out, v in zip(outs, versions, strict=True))
        if where != "meta":
            assert all(outs[i].is_neg() for i in indices)
            assert_all_same_bits([out.resolve_neg() for out in outs], expected)
    if where != "meta":
        assert_all_same_bits(call(), expected)  # the process is in good health


@each_op
def test_negated_in_place(device: str, op: Op) -> None:
    call = op.call((4,), 8, torch.float32, device)
    expected = call()
    for name in op.inputs:
        lazy = call.mapped(negated, [name])
        outs = [lazy[name], *call.empty_outs()[1:]]
        lazy(out=outs)
        assert_all_same_bits([out.resolve_neg() for out in outs], expected)


@each_op
def test_wrong_outs_are_refused_as_ever(where: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float32, where)

    def refused(error: type[Exception], text: str, out: Tensor) -> None:
        for i, name in enumerate(op.results):
            outs = list(call.empty_outs())
            outs[i] = out
            with pytest.raises(error, match=f"mlxnorm::{op.name}: {name} {text}"):
                call(out=outs)
        call()

    z = torch.zeros(2, 8, dtype=torch.complex64, device=where)
    refused(TypeError, r"must be float32 \(as .*\), got complex64", z.conj())
    short = pending_negation((2, 7), torch.float32, where)
    refused(RuntimeError, r"must have shape \[2, 8\]", short)
    if where != "mps":  # makes none
        zeros = torch._efficientzerotensor(2, 8, device=where)
        refused(RuntimeError, "must not be a ZeroTensor", zeros)


@each_op_that(lambda op: len(op.results) > 1)
def test_negated_outs_that_overlap(device: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float32, device)
    out = pending_negation((2, 8), torch.float32, device)
    outs = [out, out.view(2, 8), *call.empty_outs()[2:]]
    text = f"{op.results[1]} must not share memory with {op.results[0]}"
    with pytest.raises(RuntimeError, match=text):
        call(out=outs)


@each_op
def test_conjugated_inputs_are_refused(where: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float32, where)
    conjugated = call.mapped(lambda t: t.to(torch.complex64).conj(), [op.first])
    with pytest.raises(TypeError, match=f"{op.first} must be float32, float16 or bfloat16"):
        conjugated()


@each_op
def test_zeros_without_memory(op: Op) -> None:
    call = op.call((2, 3), 8, torch.float32, "cpu", scale=op.scale_kinds[-1])
    for name in op.tensors:
        zero = call.mapped(lambda t: torch._efficientzerotensor(t.shape), [name])
        expected = call.mapped(torch.zeros_like, [name])()
        assert_all_same_bits(zero(), expected)
        assert_all_same_bits(zero(out=call.empty_outs()), expected)


def test_record_refuses_them(device: str) -> None:
    record = RmsNormRecord(torch.float32, 2, 8, has_weight=False, device=device)
    x = randn(2, 8, device=device)
    for given in ((negated(x), x), (x, negated(x))):
        with pytest.raises(RuntimeError, match="must be a plain tensor"):
            record(given[0], None, given[1])


@each_op
def test_compile_of_negated_tensors(op: Op) -> None:
    call = op.call((2,), 8, torch.float32, "cpu").mapped(negated, op.inputs)

    torch._dynamo.reset()
    compiled = torch.compile(function_of(call), backend="aot_eager", fullgraph=True)
    assert_all_same_bits(compiled(call.tensors), call())
