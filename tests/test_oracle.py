"""The oracle of the other tests is tight: it notices each of the mistakes planted here."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from ops import OPS, Call, Op, assert_allowed, each_op, each_op_that
from oracle import Interval
from steps import Bounds, Options, fused_multiply_add
from tensors import type_id
from torch import Tensor

# A result in 16 bits says less, so it takes more of them for a small mistake to show.
ROWS, DIM = (30,), 96
each_16_bit = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=type_id)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=type_id
)


def assert_noticed(call: Call, results: tuple[Tensor, ...]) -> None:
    with pytest.raises(AssertionError, match="elements are off"):
        assert_allowed(call, results)


@each_16_bit
@each_op
def test_most_elements_may_have_one_value_only(op: Op, dtype: torch.dtype) -> None:
    for options in ({}, {"casting_mode": "llama"}):
        for bounds in op.call(ROWS, DIM, dtype, **options).bounds():
            rounded = bounds.rounded(dtype)
            assert (rounded.low == rounded.high).double().mean() > 0.98


@each_op
def test_float32_may_differ_in_the_last_digits_only(op: Op) -> None:
    for bounds in op.call(ROWS, DIM).bounds():
        magnitude = bounds.high.abs().amax()
        assert (bounds.high - bounds.low).amax() < 2.0**-18 * magnitude


@each_16_bit
@each_op
def test_notices_the_other_casting_mode(op: Op, dtype: torch.dtype) -> None:
    gemma = op.call(ROWS, DIM, dtype)
    llama = gemma.under(casting_mode="llama")
    assert_allowed(gemma, gemma())
    assert_noticed(gemma, llama())
    assert_noticed(llama, gemma())


@each_16_bit
@each_op_that(lambda op: op.rounds)
def test_notices_a_rounding_too_many_or_too_few(op: Op, dtype: torch.dtype) -> None:
    kept = op.call(ROWS, DIM, dtype).under(**{"norm_before_gate": True} if op.gates else {})
    rounded = kept.under(round_intermediates=True)
    assert_noticed(kept, rounded())
    assert_noticed(rounded, kept())


class MeanOfRounded(Bounds):
    """Second norms divide by the mean of the sum as it is written, not as it was computed."""

    def inverse_rms(self, x: Interval) -> Interval:
        return super().inverse_rms(x.rounded(self.dtype))


@each_16_bit
@each_op_that(lambda op: op.has_second_norm_of_a_sum)
def test_notices_the_mean_of_what_was_rounded(op: Op, dtype: torch.dtype) -> None:
    call = op.call(ROWS, DIM, dtype)
    wrong = call.steps(MeanOfRounded(Options(), dtype))
    assert_noticed(call, tuple(((b.low + b.high) / 2).to(dtype) for b in wrong))


@each_dtype
@each_op
def test_notices_another_eps_or_offset(op: Op, dtype: torch.dtype) -> None:
    small = op.call(ROWS, DIM, dtype).mapped(lambda t: 1e-3 * t, op.activations)
    assert_noticed(small, small.under(eps=1.02e-6)())
    call = op.call(ROWS, DIM, dtype)
    assert_noticed(call, call.under(weight_offset=1e-2)())


@each_dtype
@each_op
def test_notices_a_weight_off_by_one(op: Op, dtype: torch.dtype) -> None:
    call = op.call(ROWS, DIM, dtype)
    for name in op.operands:
        assert_noticed(call, call.mapped(lambda t: t.roll(1, -1), [name])())


@each_op
def test_notices_every_element_that_is_read(op: Op) -> None:
    call = op.call((1,), 5, torch.bfloat16)
    for name, tensor in call.tensors.items():
        for i in range(tensor.numel()):
            other = tensor.clone()
            other.view(-1)[i] *= -1000
            assert_noticed(call, call.having(**{name: other})())


@each_op
def test_notices_every_element_that_is_written(op: Op) -> None:
    call = op.call((2,), 5, torch.bfloat16)
    for k, result in enumerate(results := call()):
        for i in range(result.numel()):
            wrong = [r.clone() for r in results]
            wrong[k].view(-1)[i] = 0.0
            assert_noticed(call, tuple(wrong))


@each_16_bit
@each_op
def test_notices_the_last_bit(op: Op, dtype: torch.dtype) -> None:
    """Of an element picked at random: one that has a single value, as most have."""
    call = op.call(ROWS, DIM, dtype)
    results = call()
    for k, bounds in enumerate(call.bounds()):
        rounded = bounds.rounded(dtype)
        certain = (rounded.low == rounded.high).nonzero()
        row, i = certain[len(certain) // 3].tolist()
        for step in (-1, 1):
            wrong = [r.clone() for r in results]
            wrong[k].view(torch.int16)[row, i] += step
            assert_noticed(call, tuple(wrong))


@each_dtype
@each_op_that(lambda op: op.activates)
def test_notices_another_activation(op: Op, dtype: torch.dtype) -> None:
    call = op.call(ROWS, DIM, dtype)
    kinds = ["none", "silu", "gelu_tanh", "sigmoid"]
    results = {kind: call.under(activation=kind)() for kind in kinds}
    for kind in kinds:
        for other in kinds:
            if kind == other:
                assert_allowed(call.under(activation=kind), results[other])
            else:
                assert_noticed(call.under(activation=kind), results[other])


@each_dtype
@each_op_that(lambda op: op.gates)
def test_notices_another_place_of_the_gate_or_another_group(op: Op, dtype: torch.dtype) -> None:
    call = op.call(ROWS, DIM, dtype)
    others = [call, call.under(norm_before_gate=True), call.under(group_size=DIM // 2)]
    for one, other in itertools.permutations(others, 2):
        assert_noticed(one, other())


@each_16_bit
@each_op_that(lambda op: op.named("bias"))
def test_notices_a_norm_that_is_rounded_before_its_bias(op: Op, dtype: torch.dtype) -> None:
    call = op.call(ROWS, DIM, dtype)
    (rounded,) = call.having(bias=None)()
    assert_noticed(call, (rounded + call["bias"],))


@each_dtype
@each_op_that(lambda op: op.adds_a_branch)
def test_notices_another_gate_or_factor(op: Op, dtype: torch.dtype) -> None:
    call = op.call(ROWS, DIM, dtype)
    others = [call, call.having(gate=None), call.under(alpha=1.02), call.under(beta=1.02)]
    others += [call.under(gate_activation=kind) for kind in ("tanh", "sigmoid")]
    for one, other in itertools.permutations(others, 2):
        assert_noticed(one, other())


@each_dtype
@each_op_that(lambda op: op.modulates)
def test_notices_another_modulation(op: Op, dtype: torch.dtype) -> None:
    call = op.call(ROWS, DIM, dtype)
    shift = op.named("scale")[-1]
    for other in (call.having(**{shift: None}), call.under(**{op.scale_offset: 0.99})):
        assert_noticed(call, other())
        assert_noticed(other, call())


def test_notices_partial_sums_in_16_bits() -> None:
    """Experts are summed in float32, whatever they are."""
    call = OPS["fused_moe_wsum_post_ff_norm2_endlayer"].call(ROWS, DIM, torch.bfloat16, top_k=8)
    experts, weights = call["expert_outputs"], call["routing_weights"]
    total = (weights.unsqueeze(-1) * experts).sum(dim=-2)
    end = OPS["fused_post_ff_norm2_endlayer"]
    tensors = {name: total if name == "moe_accum" else call[name] for name in end.tensors}
    assert_noticed(call, replace(call, op=end, tensors=tensors)())


def test_notices_a_sum_of_squares_in_one_accumulator() -> None:
    """In float32, 40 000 elements added one after the other lose digits that kernels keep."""
    call = OPS["rms_norm"].call((40,), 40_000, missing=["weight", "bias"])
    x = call["x"]
    total = torch.zeros(len(x))
    for column in x.square().unbind(dim=-1):
        total += column
    assert_noticed(call, (x * torch.rsqrt(total / x.shape[-1] + 1e-6).unsqueeze(-1),))


def test_fused_multiply_add_is_rounded_once() -> None:
    """A product half way between two float32 values, and a sum that float64 cannot hold."""
    half = torch.tensor([1 + 2.0**-12], dtype=torch.float64)
    for sign in (1.0, -1.0):
        # half * half = 1 + 2**-11 + 2**-24: a tie, which the smallest addend decides.
        for addend, expected in [(2.0**-90, 2.0**-23), (-(2.0**-90), 0.0), (0.0, 0.0)]:
            c = torch.tensor([sign * addend], dtype=torch.float64)
            result = fused_multiply_add(sign * half, half, c)
            assert result.item() == sign * (1 + 2.0**-11 + expected)
