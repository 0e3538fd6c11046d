"""Ops on heads: queries, keys and values of different numbers of them in one dispatch, norms across
all heads of a token."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import metal_sim
import pytest
import torch
from ops import OPS, Call, Op, assert_all_same_bits, check, each_op_that
from tensors import POISON, assert_only_written, randn
from torch import Tensor

from torch_mlxnorm import rms_norm, rms_norm_rope

each_op_of_segments = each_op_that(lambda op: op.has_segments)
each_op_that_rotates = each_op_that(lambda op: op.rotates)

# Where heads are, among batch and tokens: shapes of inputs, and of tables that all heads share.
AXES: dict[str, tuple[Callable[[int], tuple[int, ...]], tuple[int, ...]]] = {
    "batch, tokens, heads": (lambda heads: (2, 5, heads), (5, 1)),
    "batch, heads, tokens": (lambda heads: (2, heads, 5), (2, 1, 5)),
}
HEADS = {"q": 6, "k": 2, "v": 3}


def call_of_heads(op: Op, axes: str, dim: int, device: str, **options: object) -> Call:
    of_heads, of_tables = AXES[axes]
    shapes = {name: (*of_heads(HEADS[name]), dim) for name in op.inputs}
    shapes |= dict.fromkeys(op.named("angles"), (*of_tables, dim // 2))
    if options.get("across_heads"):
        shapes |= {name: (HEADS[name[0]] * dim,) for name in op.named("weight")}
    return op.call((1,), dim, torch.bfloat16, device, mixed=1, shapes=shapes, **options)


def one_by_one(call: Call) -> list[Tensor]:
    cos, sin = call["cos"], call["sin"]
    weights = [call.tensors.get(f"{name}_weight") for name in call.op.inputs]
    if call.op.name == "qkv_norm_rope":
        *rotated, v = call.op.inputs
        values = call[v].flatten(-2) if call.options.get("across_heads") else call[v]
        rest = [rms_norm(values, None).reshape(call[v].shape)]
    else:
        rotated, rest = call.op.inputs, []
    pairs = zip(rotated, weights, strict=False)
    return [rms_norm_rope(call[x], w, cos, sin, **call.options) for x, w in pairs] + rest


def dispatches_of(call: Call) -> int | None:
    """On simulated MPS; None where nothing counts them."""
    if not metal_sim.is_enabled():
        return None
    metal_sim.reset_stats()
    call()
    return metal_sim.stats()["dispatches"]


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("dim", [64, 30, 700])
@pytest.mark.parametrize("axes", AXES)
@each_op_of_segments
def test_different_numbers_of_heads(
    device: str, op: Op, axes: str, dim: int, interleaved: bool
) -> None:
    call = call_of_heads(op, axes, dim, device, interleaved=interleaved)
    results = call()
    assert dispatches_of(call) in (None, device == "mps")
    assert_all_same_bits(check(call), results)
    assert_all_same_bits(results, one_by_one(call))


@pytest.mark.parametrize("heads", [4, None], ids=["equal", "different"])
@each_op_of_segments
def test_across_heads(device: str, op: Op, heads: int | None) -> None:
    """Rows of one length share a dispatch."""
    call = call_of_heads(op, "batch, tokens, heads", 32, device, across_heads=True)
    if heads is not None:
        shapes = {name: (2, 5, heads, 32) for name in op.inputs}
        shapes |= {name: (heads * 32,) for name in op.named("weight")}
        call = op.call((2, 5, heads), 32, torch.bfloat16, device, shapes=shapes, across_heads=True)
    results = call()
    expected = 1 if heads is not None else len(op.inputs)
    assert dispatches_of(call) in (None, expected if device == "mps" else 0)
    assert_all_same_bits(check(call), results)
    assert_all_same_bits(results, one_by_one(call))


@pytest.mark.parametrize("dim", [8, 32, 36, 640])
@pytest.mark.parametrize("table", ["shared", "of each head", "of one angle", "partial"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
def test_tables_across_heads(device: str, dim: int, table: str, interleaved: bool) -> None:
    shape = {
        "shared": (5, 1, dim // 2),
        "of each head": (5, 7, dim // 2),
        "of one angle": (1,),
        "partial": (7, dim // 4),
    }[table]
    call = OPS["rms_norm_rope"].call(
        (2, 5, 7),
        dim,
        torch.float16,
        device,
        shapes={"cos": shape, "sin": shape},
        across_heads=True,
        interleaved=interleaved,
    )
    check(call)
    expanded = call.mapped(lambda t: t.expand(2, 5, 7, shape[-1]), ["cos", "sin"])
    assert_all_same_bits(expanded(), call())
    differently = call.mapped(lambda t: t.expand(2, 5, 7, shape[-1]).contiguous(), ["cos"])
    assert_all_same_bits(differently(), call())


def test_heads_that_are_apart_are_copied(device: str) -> None:
    call = OPS["rms_norm_rope"].call((2, 5, 4), 32, torch.float32, device, across_heads=True)
    apart = call.mapped(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), ["x"])
    assert_all_same_bits(apart(), call())


@pytest.mark.parametrize("across_heads", [False, True])
@each_op_of_segments
def test_a_packed_projection_in_place(device: str, op: Op, across_heads: bool) -> None:
    """[tokens, all heads of q, k and v]."""
    call = call_of_heads(op, "batch, tokens, heads", 64, device, across_heads=across_heads)
    counts = [HEADS[name] for name in op.inputs]
    packed = torch.empty(2, 5, sum(counts) * 64, dtype=torch.bfloat16, device=device)
    slices = [part.unflatten(-1, (-1, 64)) for part in packed.split([64 * n for n in counts], -1)]
    for name, part in zip(op.inputs, slices, strict=True):
        part.copy_(call[name])
    call.having(**dict(zip(op.inputs, slices, strict=True)))(out=slices)
    assert_all_same_bits(slices, call())


@pytest.mark.usefixtures("simulated_mps")
@pytest.mark.parametrize("dim", [48, 96])
@each_op_of_segments
def test_thread_order_does_not_change_a_bit(op: Op, dim: int) -> None:
    for axes, across_heads in itertools.product(AXES, (False, True)):
        if across_heads and axes != "batch, tokens, heads":
            continue
        call = call_of_heads(op, axes, dim, "mps", across_heads=across_heads)

        def overwriting(call: Call = call) -> tuple[Tensor, ...]:
            copied = call.mapped(torch.clone, call.op.inputs)
            return copied(out=[copied[name] for name in call.op.inputs])

        results = metal_sim.assert_order_independent(overwriting, 3, op.name)
        assert_all_same_bits(results, call())


@each_op_that_rotates
def test_into_a_cache(device: str, op: Op) -> None:
    """Slots of a cache, [batch, heads, slots, dim]."""
    call = op.call((2, 3, 5), 32, torch.float16, device)
    expected = call()
    for start in (0, 5):
        caches = [torch.full((2, 3, 15, 32), POISON, dtype=torch.float16, device=device)]
        caches += [torch.full_like(caches[0], POISON) for _ in op.results[1:]]
        outs = [cache[:, :, start : start + 5] for cache in caches]
        call(out=outs)
        assert_all_same_bits(outs, expected)
        for out in outs:
            assert_only_written(out, POISON)


@each_op_of_segments
def test_no_rows_of_some(device: str, op: Op) -> None:
    shapes = {op.inputs[-1]: (2, 0, 16)} | dict.fromkeys(op.named("angles"), (2, 1, 8))
    call = op.call((2, 3), 16, torch.float32, device, shapes=shapes)
    results = call()
    assert results[-1].shape == (2, 0, 16)
    assert_all_same_bits(results, one_by_one(call))


@each_op_of_segments
def test_results_over_the_input_of_another(device: str, op: Op) -> None:
    call = op.call((4,), 16, torch.float32, device)
    outs = list(call.empty_outs())
    outs[0] = call[op.inputs[1]]
    with pytest.raises(RuntimeError, match="q_out must not share memory with k, got bytes"):
        call(out=outs)


@each_op_that_rotates
def test_transforms_across_heads(op: Op) -> None:
    """A batch that is hidden, and jagged tokens."""
    call = op.call((3, 5, 4), 16, torch.float32, across_heads=True)
    shared = call.mapped(lambda t: t[0], op.named("angles"))
    names = list(call.tensors)
    function = getattr(torch.ops.mlxnorm, op.name).default
    dims = tuple(0 if name in op.inputs else None for name in names)
    batched = torch.vmap(lambda *t: function(*t, across_heads=True), dims)(
        *(shared[name] for name in names)
    )
    assert_all_same_bits([batched] if isinstance(batched, Tensor) else batched, shared())

    offsets = torch.tensor([0, 2, 5, 9])
    values = [randn(9, 4, 16, seed=i) for i in range(len(op.inputs))]
    ragged = [torch.nested.nested_tensor_from_jagged(v, offsets) for v in values]
    one_table = call.mapped(lambda t: t[:1, :1, :1], op.named("angles"))
    nested = one_table.having(**dict(zip(op.inputs, ragged, strict=True)))()
    dense = one_table.having(**dict(zip(op.inputs, values, strict=True)))
    dense = dense.mapped(lambda t: t[0], op.named("angles"))
    assert_all_same_bits([t.values() for t in nested], dense())
