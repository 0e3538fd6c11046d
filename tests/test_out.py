"""`out=`: what is written and returned, in place, and what may not share memory. That nothing else
is written, `ops.run` sees to in every test of values."""

from __future__ import annotations

import itertools

import pytest
import torch
from ops import Call, Op, assert_all_same_bits, each_op, each_op_that
from tensors import POISON, type_id
from torch import Tensor

import torch_mlxnorm


@each_op
def test_out_is_written_and_returned(device: str, op: Op) -> None:
    call = op.call((4,), 100, torch.float32, device)
    outs = tuple(torch.full_like(out, POISON) for out in call.empty_outs())
    versions = [out._version for out in outs]
    returned = call(out=outs)
    assert all(a is b for a, b in zip(returned, outs, strict=True))
    assert_all_same_bits(outs, call())
    assert [out._version for out in outs] == [version + 1 for version in versions]

    positional, keyword = call.arguments()
    again = call.empty_outs()
    names = dict(zip(op.results, again, strict=True))
    assert op.packet.out(*positional, **keyword, **names) is None
    assert_all_same_bits(again, outs)


@each_op
def test_the_overload_gives_what_the_function_gives(device: str, op: Op) -> None:
    call = op.call((4,), 100, torch.float16, device, weight_offset=0.5, casting_mode="llama")
    positional, keyword = call.arguments()
    results = op.packet.default(*positional, 1e-5, **keyword)
    results = (results,) if isinstance(results, Tensor) else results
    assert_all_same_bits(results, call.under(eps=1e-5)())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@pytest.mark.parametrize("dim", [48, 1000, 40_000])
@each_op
def test_in_place(device: str, op: Op, dim: int, dtype: torch.dtype) -> None:
    """Each result over each activation, and as many as there are at once."""
    call = op.call((3,), dim, dtype, device)
    expected = call()
    pairs: list[tuple[tuple[int, str], ...]] = [
        ((i, name),) for i in range(len(expected)) for name in op.inputs
    ]
    count = min(len(expected), len(op.inputs))
    if count > 1:
        first = range(len(expected))[:count]
        pairs += [
            tuple(zip(first, p, strict=True)) for p in itertools.permutations(op.inputs, count)
        ]
    for pair in pairs:
        overwritten = call.mapped(torch.clone, [name for _, name in pair])
        outs = list(call.empty_outs())
        for i, name in pair:
            outs[i] = overwritten[name]
        assert_all_same_bits(overwritten(out=outs), expected)


@each_op
def test_in_place_of_a_view(device: str, op: Op) -> None:
    """The same contiguous tensor may come as another Python object, or at an offset."""
    call = op.call((4,), 32, torch.float32, device)
    expected = call()
    name = op.inputs[-1]
    storage = torch.full((256,), POISON, device=device)
    x = storage[64:192].view(4, 32).copy_(call[name])
    outs = [storage[64:192].view(4, 32), *call.empty_outs()[1:]]
    assert_all_same_bits(call.having(**{name: x})(out=outs), expected)
    assert storage[:64].cpu().eq(POISON).all() and storage[192:].cpu().eq(POISON).all()


@each_op_that(lambda op: len(op.inputs) > 1)
def test_in_place_of_a_tensor_given_twice(device: str, op: Op) -> None:
    call = op.call((3,), 1000, torch.bfloat16, device)
    twice = call.having(**dict.fromkeys(op.inputs, call[op.inputs[0]]))
    expected = twice()
    x = twice[op.inputs[0]].clone()
    overwritten = twice.having(**dict.fromkeys(op.inputs, x))
    outs = [*call.empty_outs()[1:], x]
    assert_all_same_bits(overwritten(out=outs), expected)


@each_op
def test_neighbours_do_not_overlap(device: str, op: Op) -> None:
    call = op.call((2,), 16, torch.float32, device, scale="dim")
    count = sum(t.numel() for t in call.tensors.values())
    storage = torch.empty(count + 32 * len(op.results), device=device)
    end = 0
    packed = call
    for name, tensor in call.tensors.items():
        packed = packed.having(**{name: storage[end : end + tensor.numel()].view(tensor.shape)})
        packed[name].copy_(tensor)
        end += tensor.numel()
    outs = [storage[end + 32 * i :][:32].view(2, 16) for i in range(len(op.results))]
    assert_all_same_bits(packed(out=outs), call())


# ---- errors -------------------------------------------------------------------------------------


def overlapping(call: Call, name: str, shift: int) -> tuple[Call, Tensor]:
    """The call with one tensor in a larger storage, and an out of the same storage."""
    tensor = call[name]
    storage = torch.zeros(4 * max(tensor.numel(), call.shape.numel()), device=tensor.device)
    start = call.shape.numel()
    moved = storage[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)
    out = storage[start + shift :][: call.shape.numel()].view(call.shape)
    return call.having(**{name: moved}), out


@each_op
def test_error_for_overlap(device: str, op: Op) -> None:
    call = op.call((4,), 16, torch.float32, device, scale=op.scale_kinds[-1])
    for (i, result), name in itertools.product(enumerate(op.results), op.tensors):
        in_place = op.tensors[name].role == "input"
        unless = " unless it is the same contiguous tensor" if in_place else ""
        text = f"mlxnorm::{op.name}: {result} must not share memory with {name}{unless}, got bytes"
        for shift in (-1, 3) if in_place else (-1, 0, 3):
            moved, out = overlapping(call, name, shift)
            outs = list(call.empty_outs())
            outs[i] = out
            before = moved[name].clone()
            with pytest.raises(RuntimeError) as raised:
                moved(out=outs)
            assert str(raised.value).startswith(text)
            assert torch.equal(moved[name], before)


@each_op
def test_error_for_overlap_of_strided_tensors(device: str, op: Op) -> None:
    """Not the same tensor, though it begins where out begins."""
    call = op.call((8,), 8, torch.float32, device)
    for name in op.inputs:
        storage = torch.ones(64, device=device)
        transposed = call.having(**{name: storage.view(8, 8).t()})
        with pytest.raises(RuntimeError, match=f"must not share memory with {name} unless"):
            transposed(out=[storage.view(8, 8), *call.empty_outs()[1:]])


@each_op_that(lambda op: len(op.results) > 1)
def test_error_for_outs_that_overlap(device: str, op: Op) -> None:
    call = op.call((2,), 16, torch.float32, device)
    for i, j in itertools.combinations(range(len(op.results)), 2):
        for shift in (0, 5):
            storage = torch.zeros(64, device=device)
            outs = list(call.empty_outs())
            outs[i] = storage[:32].view(2, 16)
            outs[j] = storage[shift : shift + 32].view(2, 16)
            text = f"{op.results[j]} must not share memory with {op.results[i]}, got bytes"
            with pytest.raises(RuntimeError, match=text):
                call(out=outs)


@each_op_that(lambda op: len(op.results) > 1)
def test_error_for_another_number_of_outs(op: Op) -> None:
    call = op.call((2,), 16)
    outs = call.empty_outs()
    expected = (
        f"mlxnorm::{op.name}: out must be a tuple of {len(outs)} tensors "
        f"({', '.join(op.results)}), got "
    )
    function = getattr(torch_mlxnorm, op.name)
    for wrong, got in [
        (outs[0], "Tensor"),
        (outs[:-1], f"tuple of {len(outs) - 1}"),
        ([*outs, outs[0]], f"list of {len(outs) + 1}"),
        ({}, "dict"),
    ]:
        with pytest.raises(TypeError) as raised:
            function(**call.tensors, out=wrong)
        assert str(raised.value) == expected + got
