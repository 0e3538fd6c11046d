"""`out=`: what is written and returned, in place, and what may not share memory. That nothing else
is written, `ops.run` sees to in every test of values."""

from __future__ import annotations

import itertools

import pytest
import torch
from ops import Call, Op, assert_all_same_bits, each_op, each_op_that
from tensors import POISON, assert_only_written, type_id
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
    assert op.packet.out(*positional, **keyword, **call.given_outs(again)) is None
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
    pairs: list[tuple[tuple[int, str], ...]] = [(pair,) for pair in op.in_place]
    count = min(len(expected), len(op.inputs))
    if op.has_segments:
        pairs.append(tuple(op.in_place))
    elif count > 1:
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


@each_op_that(lambda op: op.residuals)
def test_no_result_is_written_over_a_tensor_of_another_dtype(device: str, op: Op) -> None:
    """At one address with the same strides: a row would overwrite the next."""
    storage = torch.ones(4 * 32, device=device)
    call = op.call((4,), 32, torch.bfloat16, device).with_wide_residual()
    call = call.having(**{op.first: storage.view(torch.bfloat16)[: 4 * 32].view(4, 32)})
    outs = list(call.empty_outs())
    outs[[op.likes[name] for name in op.results].index(op.residuals[0])] = storage.view(4, 32)
    with pytest.raises(RuntimeError, match=f"must not share memory with {op.first}"):
        call(out=outs)


@each_op
def test_in_place_of_a_view(device: str, op: Op) -> None:
    """The same contiguous tensor may come as another Python object, or at an offset."""
    call = op.call((4,), 32, torch.float32, device)
    expected = call()
    name = op.may_overwrite[0][-1]
    storage = torch.full((256,), POISON, device=device)
    x = storage[64:192].view(4, 32).copy_(call[name])
    outs = [storage[64:192].view(4, 32), *call.empty_outs()[1:]]
    assert_all_same_bits(call.having(**{name: x})(out=outs), expected)
    assert storage[:64].cpu().eq(POISON).all() and storage[192:].cpu().eq(POISON).all()


@each_op_that(lambda op: len(op.inputs) > 1 and not op.has_segments)
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


# ---- strided ----------------------------------------------------------------------------------

LEADING = (2, 3, 4)


def rows_apart(t: Tensor) -> Tensor:
    return t.new_full((*t.shape[:-1], t.shape[-1] + 24), POISON)[..., 8:-16]


def heads_first(t: Tensor) -> Tensor:
    b, s, h, d = t.shape
    return t.new_full((b, h, s, d), POISON).transpose(1, 2)


def slot_of_a_cache(t: Tensor) -> Tensor:
    b, s, h, d = t.shape
    return t.new_full((b, s + 5, h, d), POISON)[:, 2 : 2 + s]


def in_a_row_of_several(t: Tensor) -> Tensor:
    b, s, h, d = t.shape
    return t.new_full((b, s, 3, h, d), POISON)[:, :, 1]


STRIDED = {f.__name__: f for f in (rows_apart, heads_first, slot_of_a_cache, in_a_row_of_several)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@pytest.mark.parametrize("dim", [7, 48, 1000])
@each_op
def test_strided(device: str, op: Op, dim: int, dtype: torch.dtype) -> None:
    """Any rows, each result in a layout of its own; nothing between them is written."""
    call = op.call(LEADING, dim, dtype, device)
    expected = call()
    makers = list(STRIDED.values())
    for shift in range(len(makers)):
        outs = [makers[(i + shift) % 4](out) for i, out in enumerate(call.empty_outs())]
        assert_all_same_bits(call(out=outs), expected)
        for out in outs:
            assert_only_written(out, POISON)


@each_op
def test_strided_in_place(device: str, op: Op) -> None:
    call = op.call(LEADING, 48, torch.bfloat16, device)
    expected = call()
    for (i, name), make in itertools.product(op.in_place, STRIDED.values()):
        x = make(call[name]).copy_(call[name])
        outs = list(call.empty_outs())
        outs[i] = x
        assert_all_same_bits(call.having(**{name: x})(out=outs), expected)
        assert_only_written(x, POISON)


@each_op_that(lambda op: len(op.inputs) > 1)
def test_slices_of_one_row(device: str, op: Op) -> None:
    """A packed projection: inputs and results lie between one another."""
    call = op.call((2, 5), 32, torch.float16, device)
    expected = call()
    count = len(op.inputs) + len(op.results)
    packed = torch.zeros(2, 5, count * 32, dtype=torch.float16, device=device)
    slices = packed.split(32, dim=-1)
    inside = call
    for name, part in zip(op.inputs, slices, strict=False):
        inside = inside.having(**{name: part.copy_(call[name])})
    assert_all_same_bits(inside(out=slices[len(op.inputs) :]), expected)
    for name, part in zip(op.inputs, slices, strict=False):
        assert torch.equal(part, call[name])


@each_op
def test_written_past_the_caches_when_strided(op: Op) -> None:
    few = op.call((8,), 2048, torch.float32, top_k=1)
    many = few.mapped(lambda t: t.repeat(336, *[1] * (t.dim() - 1)), few.rowwise)
    outs = [out.new_empty(len(out), 2064)[:, :2048] for out in many.empty_outs()]
    assert sum(out.numel() for out in outs) * 4 >= 20 << 20
    for out, block in zip(many(out=outs), few(), strict=True):
        for part in out.split(8):
            assert torch.equal(part, block)


# Views of a storage of 96 elements, beside [2, 8] at strides (24, 1): does it share memory?
BESIDE: dict[str, tuple[tuple[int, ...], int, bool]] = {
    "between": ((24, 1), 8, False),
    "between, and up to the next row": ((24, 1), 16, False),
    "one element": ((24, 1), 7, True),
    "one element of the next row": ((24, 1), 17, True),
    "the second row": ((24, 1), 24, True),
    "behind": ((24, 1), 48, False),
    "with another step, between": ((48, 1), 8, False),
    "with another step, the first row": ((48, 1), 0, True),
    "close together, between": ((8, 1), 8, False),
    "close together, one element": ((8, 1), 9, True),
    "close together, behind": ((8, 1), 32, False),
}


@pytest.mark.parametrize("what", BESIDE)
@each_op
def test_what_shares_memory(device: str, op: Op, what: str) -> None:
    strides, offset, shares = BESIDE[what]
    call = op.call((2,), 8, torch.float32, device)
    name = op.may_overwrite[0][-1]
    storage = torch.zeros(96, device=device)
    x = storage.as_strided((2, 8), (24, 1)).copy_(call[name])
    outs = [storage.as_strided((2, 8), strides, offset), *call.empty_outs()[1:]]
    call = call.having(**{name: x})
    if shares:
        with pytest.raises(RuntimeError, match=f"must not share memory with {name} unless"):
            call(out=outs)
    else:
        expected = call()
        assert_all_same_bits(call(out=outs), expected)


@each_op_that(lambda op: not op.has_channels)
def test_leading_dimensions_that_do_not_fold(where: str, op: Op) -> None:
    call = op.call((2, 2, 2, 2), 8, torch.float32, where)
    outs = list(call.empty_outs())
    outs[0] = outs[0].new_empty(3, 3, 3, 3, 10)[:2, :2, :2, :2, :8]
    text = "must have leading dimensions that fold into at most three, got strides"
    with pytest.raises(RuntimeError, match=f"{op.results[0]} {text}"):
        call(out=outs)


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
        in_place = name in op.may_overwrite[i]
        unless = " unless it is the same tensor with the same strides" if in_place else ""
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
    for name in op.may_overwrite[0]:
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
