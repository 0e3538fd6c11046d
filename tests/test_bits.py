"""Equal bits: a fused op and the chain of single ops, a row alone and in a batch, any alignment."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from ops import (
    OPERANDS,
    OPS,
    Op,
    assert_all_same_bits,
    check,
    each_op,
    each_op_and_types,
    each_op_that,
)
from oracle import assert_same_bits, different_bits
from parallel import threads
from steps import activate, activate_in_float32
from tensors import DTYPES, misaligned, type_id

# Kernels for rows of three lengths on MPS, and rows that do not fill their words.
CHAIN_DIMS = [1, 7, 96, 1000, 2816]


# ---- round_intermediates: the chain of mlxnorm::rms_norm and PyTorch's add and mul --------------


@pytest.mark.parametrize("dim", CHAIN_DIMS)
@each_op_and_types
def test_equals_the_chain(
    device: str, op: Op, dtype: torch.dtype, operands: dict[str, Any], dim: int
) -> None:
    """In float32 every step rounds anyway, to an operand's dtype aside, and the CPU and the
    simulator never fuse two."""
    rounding = [True] if dtype != torch.float32 or op.modulates else [False, True]
    for casting_mode, scale in itertools.product(["gemma", "llama"], op.scale_kinds):
        offset = 1.0 if casting_mode == "llama" else 0.0
        call = op.call((2,), dim, dtype, device, scale=scale, **operands)
        call = call.under(casting_mode=casting_mode, weight_offset=offset).that_has_a_chain
        if call.may_be_contracted:
            pytest.skip("a GPU may fuse a product and a sum")
        expected = call.chain()
        for round_intermediates in rounding:
            rounds = {"round_intermediates": round_intermediates} if op.rounds else {}
            assert_all_same_bits(call.under(**rounds)(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=type_id)
@pytest.mark.parametrize("dim", [16_400, 33_000])
@each_op
def test_equals_the_chain_in_long_rows(device: str, op: Op, dim: int, dtype: torch.dtype) -> None:
    call = op.call((2,), dim, dtype, device, casting_mode="llama", mixed=1).that_has_a_chain
    call = call.under(round_intermediates=True) if op.rounds else call
    assert_all_same_bits(call(), call.chain())


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@each_op_that(lambda op: op.optional)
def test_equals_the_chain_with_tensors_missing(device: str, op: Op, dtype: torch.dtype) -> None:
    rounds = {"round_intermediates": True} if op.rounds else {}
    for missing in op.combinations_missing:
        call = op.call((3,), 200, dtype, device, missing=missing, **rounds).that_has_a_chain
        if call.may_be_contracted:
            pytest.skip("a GPU may fuse a product and a sum")
        assert_all_same_bits(call(), call.chain())


@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=type_id)
def test_expert_sum_equals_fused_multiply_adds(device: str, dtype: torch.dtype, top_k: int) -> None:
    op = OPS["fused_moe_wsum_post_ff_norm2_endlayer"]
    for float32, dim in itertools.product(["none", "all"], [10, 1000]):
        call = op.call((3, 2), dim, dtype, device, top_k=top_k, float32=float32)
        call = call.under(round_intermediates=True)
        assert_all_same_bits(call(), call.chain())


@pytest.mark.parametrize(
    ("dtype", "seldom"), [(torch.float16, 2e-3), (torch.bfloat16, 2.5e-4)], ids=type_id
)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "sigmoid"])
def test_an_activation_seldom_differs_from_pytorch(
    device: str, activation: str, dtype: torch.dtype, seldom: float
) -> None:
    """By one or two bits: where exp differs in the last bits of float32, it takes the result across
    a boundary between two values, which are 2**13 such bits apart in float16 and 2**16 in bfloat16.

    PyTorch's gelu_tanh adds 1 to tanh, which cancels where tanh is close to -1: by how much depends
    on its version and the machine. Float64 says where it is right; ours has to be everywhere."""
    eps = torch.finfo(dtype).eps
    for float32 in ("none", "all"):
        call = OPS["rms_norm_mul"].call((40,), 1000, dtype, device, scale="rows", float32=float32)
        call = call.under(activation=activation, round_intermediates=True)
        (ours,), (theirs,) = check(call), call.chain()
        right = activates_rightly(activation, call["scale"].cpu(), eps / 64)
        assert right.double().mean() > 0.97  # all but a tail of gelu_tanh's
        ours, theirs = ours.cpu()[right], theirs.cpu()[right]
        assert different_bits(ours, theirs).double().mean() < seldom
        torch.testing.assert_close(ours, theirs, rtol=2 * eps, atol=torch.finfo(dtype).tiny)


def activates_rightly(activation: str, scale: torch.Tensor, relative: float) -> torch.Tensor:
    """Where PyTorch's activation in float32 is that close to the one in float64."""
    exact = activate(activation, scale.double())
    return (activate_in_float32(activation, scale) - exact).abs() <= relative * exact.abs()


def test_where_pytorch_cancels_it_is_not_right() -> None:
    """1 + tanh(u) is 1e-6 at x = -4.2 and has an error of 3e-8."""
    scale = torch.linspace(-5.0, 5.0, 10_001)
    wrong = ~activates_rightly("gelu_tanh", scale, 2.0**-13)
    assert wrong.any() and scale[wrong].max() < -2.0
    assert activates_rightly("silu", scale, 2.0**-13).all()


# ---- the same row -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@pytest.mark.parametrize("dim", [7, 128, 1000, 2816, 8200, 33_000])
@each_op
def test_a_row_gives_the_same_bits_in_any_batch(
    device: str, op: Op, dim: int, dtype: torch.dtype
) -> None:
    rows = 70 if dim < 2000 else 7
    call = op.call((rows,), dim, dtype, device, float32="even", scale=op.scale_kinds[-1])
    batch = call()
    assert_all_same_bits(call(), batch)
    for row in (0, 1, rows - 1):
        assert_all_same_bits(call.rows(row)(), [b[row] for b in batch])
    some = slice(3, rows // 2 + 3)
    assert_all_same_bits(call.rows(some)(), [b[some] for b in batch])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@pytest.mark.parametrize(
    ("dim", "operands"),
    [(128, "float32"), (128, "mixed"), (1000, "mixed again"), (16_384, "mixed"), (33_000, "mixed")],
)
@each_op
def test_alignment_does_not_change_a_bit(
    device: str, op: Op, dim: int, operands: str, dtype: torch.dtype
) -> None:
    """Each tensor at a storage offset that rules out vector access, one at a time, and all."""
    call = op.call((2,), dim, dtype, device, scale=op.scale_kinds[-1], **OPERANDS[operands])
    expected = call()
    for names in [*([name] for name in call.tensors), list(call.tensors)]:
        assert_all_same_bits(call.mapped(misaligned, names)(), expected)
    outs = call.empty_outs()
    for i in range(len(outs)):
        shifted = [misaligned(out) if k == i else out for k, out in enumerate(outs)]
        assert_all_same_bits(call(out=shifted), expected)


@pytest.mark.parametrize("dim", [128, 1000, 16_384, 40_000])
@each_op_that(lambda op: op.residuals)
def test_alignment_of_a_float32_residual(device: str, op: Op, dim: int) -> None:
    """Two words beside one, and in place."""
    call = op.call((3,), dim, torch.bfloat16, device).with_wide_residual()
    expected = call()
    which = [op.likes[name] for name in op.results].index(op.residuals[0])
    for shifted in (call, call.mapped(misaligned, op.residuals)):
        assert_all_same_bits(shifted(), expected)
        for name in op.residuals:
            outs = list(call.empty_outs())
            outs[which] = misaligned(outs[which])
            assert_all_same_bits(shifted(out=outs), expected)
            outs[which] = shifted[name]
            assert_all_same_bits(shifted(out=outs), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
def test_experts_at_odd_distances(device: str, dtype: torch.dtype) -> None:
    """Rows begin on 16-byte boundaries, the experts within a row do not."""
    op = OPS["fused_moe_wsum_post_ff_norm2_endlayer"]
    for dim in (64, 2816):
        call = op.call((2,), dim, dtype, device, top_k=3)
        apart = torch.empty(2, 4, dim, dtype=dtype, device=device)
        apart = apart.as_strided((2, 3, dim), (4 * dim, dim + 1, 1))
        moved = call.having(expert_outputs=apart.copy_(call["expert_outputs"]))
        assert_all_same_bits(moved(), call())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@each_op
def test_threads_do_not_change_a_bit(op: Op, dtype: torch.dtype) -> None:
    call = op.call((100,), 2816, dtype)
    with threads(1):
        expected = call()
    with threads(2):
        assert_all_same_bits(call(), expected)


@pytest.mark.parametrize("dim", [2**20, 2**20 + 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@each_op
def test_threads_share_a_row_without_changing_a_bit(op: Op, dtype: torch.dtype, dim: int) -> None:
    """On the CPU, where there are fewer rows than threads."""
    for rows, operands in [(1, "float32"), (2, "mixed")]:
        call = op.call((rows,), dim, dtype, scale=op.scale_kinds[-1], **OPERANDS[operands])
        with threads(1):
            expected = call()
        for count in (2, 3):
            with threads(count):
                assert_all_same_bits(call(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_threads_share_a_row_past_the_caches_and_in_place(dtype: torch.dtype) -> None:
    call = OPS["rms_norm_add_rms_norm"].call((1,), 11 << 20, dtype)
    with threads(1):
        expected = call()
    with threads(3):
        assert_all_same_bits(call(), expected)
        in_place = [call["residual"], call["x"]]
        assert_all_same_bits(call(out=in_place), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@each_op
def test_writing_past_the_caches_does_not_change_a_bit(op: Op, dtype: torch.dtype) -> None:
    """The CPU writes huge results so, if they are aligned."""
    dim = 2048
    rows = (21 << 20) // (dim * dtype.itemsize)
    few = op.call((8,), dim, dtype, top_k=1).with_wide_residual()
    many = few.mapped(lambda t: t.repeat(rows // 8, *[1] * (t.dim() - 1)), few.rowwise)
    outs = many(out=many.empty_outs())
    expected = few()
    for out, block in zip(outs, expected, strict=True):
        assert out.nbytes >= 20 << 20 and out.data_ptr() % 64 == 0
        for part in out.split(8):
            assert_same_bits(part, block)
    shifted = many(out=[misaligned(out) for out in outs])
    assert_all_same_bits(shifted, outs)
