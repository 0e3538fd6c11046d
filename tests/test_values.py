"""What every op computes, on every device, against float64 and PyTorch."""

from __future__ import annotations

import itertools
import sys
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from ops import OPS, Op, assert_all_same_bits, check, each_op, each_op_that
from oracle import assert_same_bits, different_bits
from steps import activate, activate_in_float32
from tensors import DIMS, DTYPES, randn, type_id

from torch_mlxnorm import ChannelForm, rms_norm, rms_norm_add, rms_norm_mul

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
ACTIVATIONS = ["none", "silu", "gelu_tanh", "sigmoid"]
MOE = OPS["fused_moe_wsum_post_ff_norm2_endlayer"]


@each_dtype
@pytest.mark.parametrize("dim", DIMS)
@each_op
def test_matches_reference(device: str, op: Op, dim: int, dtype: torch.dtype) -> None:
    rows = 3 if dim < 8192 else 2
    call = op.call((rows,), dim, dtype, device, float32="even")
    check(call)
    for missing in (op.named("bias"), op.optional):
        if missing:
            check(call.having(**dict.fromkeys(missing)))


@each_dtype
@each_op
def test_dtypes(device: str, op: Op, dtype: torch.dtype, subtests: pytest.Subtests) -> None:
    for (name, operands), dim in itertools.product(op.operands_beside(dtype).items(), [33, 704]):
        with subtests.test(name, dim=dim):
            check(op.call((2, 3), dim, dtype, device, **operands))


@pytest.mark.parametrize("casting_mode", ["gemma", "llama"])
@each_dtype
@pytest.mark.parametrize(
    ("op", "round_intermediates"),
    [
        pytest.param(op, rounds, id=f"{op.name}-{'rounded' if rounds else 'kept'}")
        for op in OPS.values()
        for rounds in ([False, True] if op.rounds else [False])
    ],
)
def test_options(
    device: str, op: Op, dtype: torch.dtype, casting_mode: str, round_intermediates: bool
) -> None:
    """With one another: they meet in the kernels."""
    options = {"casting_mode": casting_mode}
    options |= {"round_intermediates": True} if round_intermediates else {}
    own: list[dict[str, Any]] = [{}]
    if op.activates:
        own = [{"activation": activation} for activation in ACTIVATIONS]
    if op.modulates:
        modulations = itertools.product(["steps", "addcmul", "once"], [1.0, 0.0])
        own = [{"modulation": m, op.scale_offset: offset} for m, offset in modulations]
    if op.gates:
        places = itertools.product([False, True], [0, 32])
        places = [{"norm_before_gate": after, "group_size": size} for after, size in places]
        own = [one | place for one in own for place in places]
    if op.rotates:
        rotations = itertools.product([False, True], [False, True], ["once", "products", "addcmul"])
        own = [{"interleaved": i, "full_tables": f, "rope_rounding": r} for i, f, r in rotations]
    if op.has_channels:
        forms = itertools.product(get_args(ChannelForm), [False, True])
        own = [{"form": form, "silu": silu} for form, silu in forms]
    together = list(itertools.product(op.scale_kinds, own))
    if op.adds_a_branch:  # each with some of the others
        gates: list[dict[str, Any]] = [{}, {"gate_activation": "tanh", "alpha": 0.22}]
        gates.append({"gate_activation": "sigmoid", "beta": -1.7})
        kinds = [op.scale_kinds[(i + i // 3) % 3] for i in range(6)]
        together = [(kinds[i], own[i % len(own)] | gates[i % 3]) for i in range(6)]
    for scale, more in together:
        for dim, weight_offset, mixed in [(96, 0.0, 1), (96, 1.0, 0), (2816, 1.0, 2)]:
            options["weight_offset"] = weight_offset
            options |= more
            call = op.call((3,), dim, dtype, device, scale=scale, mixed=mixed, **options)
            check(call)
            if biases := op.named("bias"):
                check(call.having(**dict.fromkeys(biases)))


@each_dtype
@each_op
def test_eps_and_weight_offset(device: str, op: Op, dtype: torch.dtype) -> None:
    call = op.call((5,), 200, dtype, device)
    small = call.mapped(lambda t: 1e-3 * t, op.activations)
    for eps, offset in itertools.product([0.0, 1e-6, 1e-2, None], [0.0, 1.0, -0.5]):
        check(small.under(eps=eps, weight_offset=offset))


@each_dtype
@each_op_that(lambda op: op.optional)
def test_any_optional_tensor_may_be_missing(device: str, op: Op, dtype: torch.dtype) -> None:
    for missing in op.combinations_missing:
        call = op.call((4,), 40, dtype, device, missing=missing, float32="odd")
        for casting_mode in ("gemma", "llama"):
            check(call.under(casting_mode=casting_mode, weight_offset=1.0))


@each_op_that(lambda op: set(op.weights) <= set(op.optional))
def test_without_a_weight_its_options_have_no_effect(device: str, op: Op) -> None:
    call = op.call((3,), 50, torch.bfloat16, device, missing=op.weights)
    assert_all_same_bits(call.under(casting_mode="llama", weight_offset=1.0)(), call())


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=type_id)
@pytest.mark.parametrize("dim", [33, 96, 2816, 40_000])
@each_op_that(lambda op: op.residuals)
def test_float32_residual(device: str, op: Op, dim: int, dtype: torch.dtype) -> None:
    """Beside 16 bits, in the sum, in a norm of it and in what is written."""
    kept = op.call((2,), dim, dtype, device, mixed=1, alpha=0.22, beta=1.7).with_wide_residual()
    usual = kept.having(**dict.fromkeys(op.extras)).under(alpha=1.0, beta=1.0)
    for call in (kept, kept.under(round_intermediates=True, casting_mode="llama"), usual):
        results = dict(zip(op.results, check(call), strict=True))
        stream = results["residual_out" if "residual_out" in results else "out"]
        assert stream.dtype == torch.float32
        assert [t.dtype for t in call.on("meta")()] == call.result_dtypes
        assert different_bits(stream, stream.to(dtype).float()).any()


@each_dtype
@pytest.mark.parametrize("top_k", [1, 2, 8, 17])
def test_number_of_experts(device: str, top_k: int, dtype: torch.dtype) -> None:
    for float32, dim in itertools.product(["none", "all"], [10, 96, 1000]):
        call = MOE.call((2, 3), dim, dtype, device, top_k=top_k, float32=float32)
        check(call)
        check(call.under(round_intermediates=True))


@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations_everywhere(device: str, activation: str, dtype: torch.dtype) -> None:
    """Where exp overflows, where it vanishes, and the bend between."""
    values = torch.cat([torch.linspace(-120, 120, 963), torch.linspace(-3, 3, 600)])
    values = torch.cat([values, torch.tensor([1e4, -1e4, 0.0, -0.0, float("nan")])])
    call = OPS["rms_norm_mul"].call((2,), len(values), dtype, device, activation=activation)
    for scale in (values.to(dtype), values):
        out = check(call.having(scale=scale.to(device)))[0]
        # Against PyTorch, which agrees but where tanh rounds to -1.
        ones = torch.ones(1, len(values), dtype=torch.float32, device=device)
        gate = scale.float().to(device)
        ours = rms_norm_mul(ones, None, gate, 0.0, activation=activation).cpu()[0]
        theirs = activate_in_float32(activation, scale)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
        assert out.isnan().sum() == 2  # that of scale, in two rows


@each_dtype
@pytest.mark.parametrize("activation", ["none", "tanh", "sigmoid"])
def test_gates_everywhere(device: str, activation: str, dtype: torch.dtype) -> None:
    """Where tanh is its argument, where it bends and where it is 1; in float32 to a few units."""
    values = torch.cat([torch.logspace(-30, 2, 400), torch.linspace(0, 12, 600)])
    values = torch.cat([values, -values, torch.tensor([0.0, -0.0, INF, -INF, NAN])])
    call = OPS["rms_norm_add"].call((2,), len(values), dtype, device, gate_activation=activation)
    for gate in (values.to(dtype), values):
        check(call.having(gate=gate.to(device)))
    ones, zeros = (torch.full((1, len(values)), v, device=device) for v in (1.0, 0.0))
    gate = values.to(device)
    ours = rms_norm_add(ones, zeros, None, 0.0, gate=gate, gate_activation=activation).cpu()[0]
    exact = activate(activation, values.double())
    tiny = torch.finfo(torch.float32).tiny
    torch.testing.assert_close(ours.double(), exact, rtol=2.0**-20, atol=tiny, equal_nan=True)


@each_dtype
@pytest.mark.parametrize("scale_dtype", DTYPES, ids=type_id)
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_an_activated_scale_rounds_to_its_own_dtype(
    device: str, activation: str, scale_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    """With round_intermediates, as PyTorch's activations do; in float32, too."""
    call = OPS["rms_norm_mul"].call((4,), 96, dtype, device, scale="rows", activation=activation)
    call = call.mapped(lambda t: t.to(scale_dtype), ["scale"])
    kept, rounded = check(call), check(call.under(round_intermediates=True))
    changes = dtype != torch.float32 or scale_dtype != torch.float32
    assert different_bits(kept[0], rounded[0]).any() == changes


# ---- against PyTorch ----------------------------------------------------------------------------

ROUNDING_STEP = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@each_dtype
def test_agrees_with_pytorch(device: str, dtype: torch.dtype) -> None:
    x = randn(6, 2816, dtype=dtype)
    weight = randn(2816, dtype=dtype, seed=1)
    theirs = F.rms_norm(x, (2816,), weight, 1e-6)
    ours = rms_norm(x.to(device), weight.to(device)).cpu()
    torch.testing.assert_close(ours, theirs, rtol=ROUNDING_STEP[dtype], atol=1e-6)
    if dtype != torch.float32:
        assert (ours == theirs).float().mean().item() > 0.999


@each_dtype
def test_eps_of_none_is_pytorchs(device: str, dtype: torch.dtype) -> None:
    """The same for all dtypes. These values are small enough for it to matter."""
    x = 1e-4 * randn(6, 256)
    x, weight = x.to(dtype), randn(256, dtype=dtype, seed=1)
    theirs = F.rms_norm(x, (256,), weight, None)
    ours = rms_norm(x.to(device), weight.to(device), None)
    torch.testing.assert_close(ours.cpu(), theirs, rtol=ROUNDING_STEP[dtype], atol=1e-6)
    assert_same_bits(ours, rms_norm(x.to(device), weight.to(device), 2.0**-23))
    assert different_bits(ours, rms_norm(x.to(device), weight.to(device), 1.3e-7)).any()


@each_op
def test_every_op_takes_eps_of_none(where: str, op: Op) -> None:
    """The function, both overloads, and compiled."""
    call = op.call((2,), 24, torch.float16, where)
    expected = call.under(eps=2.0**-23)()
    positional, keyword = call.arguments()
    outs = call.empty_outs()
    op.packet.out(*positional, None, **keyword, **call.given_outs(outs))
    results = op.packet.default(*positional, None, **keyword)
    results = (results,) if isinstance(results, torch.Tensor) else results
    for same in (call.under(eps=None)(), results, outs):
        if where == "meta":
            assert [t.shape for t in same] == [t.shape for t in expected]
        else:
            assert_all_same_bits(same, expected)


@each_dtype
@pytest.mark.parametrize("dim", [24, 700, 40000])
def test_nan_and_infinity_propagate_as_in_pytorch(
    device: str, dim: int, dtype: torch.dtype
) -> None:
    x = randn(5, dim, dtype=dtype)
    x[0, 3] = float("nan")
    x[1, 5] = float("inf")
    x[2, 7] = -float("inf")
    x[3] = 0.0
    weight = randn(dim, dtype=dtype, seed=1)
    weight[2] = float("inf")
    weight[4] = float("nan")
    theirs = F.rms_norm(x, (dim,), weight, 1e-6)
    ours = rms_norm(x.to(device), weight.to(device)).cpu()
    torch.testing.assert_close(ours.isnan(), theirs.isnan())
    torch.testing.assert_close(ours.isinf(), theirs.isinf())
    finite = theirs.isfinite()
    torch.testing.assert_close(ours[finite], theirs[finite], rtol=ROUNDING_STEP[dtype], atol=1e-6)


@pytest.mark.parametrize("dim", [24, 700, 33_000])
@each_op
def test_nan_and_infinity_propagate(device: str, op: Op, dim: int) -> None:
    """Each tensor in turn holds some: NaN in row 0, infinities in rows 1 and 2 or, in a tensor that
    all rows share, in columns; row 3 is zero."""
    call = op.call((4,), dim, torch.float16, device, float32="odd")
    for name, tensor in call.tensors.items():
        special = tensor.cpu().clone()
        if len(special) == 4:
            special[0, ..., 1], special[1, ..., 2], special[2, ..., 0] = NAN, INF, -INF
            special[3] = 0.0
        else:
            special[3], special[5], special[7], special[9] = NAN, INF, -INF, 0.0
        check(call.having(**{name: special.to(device)}))


NAN, INF = float("nan"), float("inf")


# ---- magnitudes ---------------------------------------------------------------------------------


def test_huge_float16_does_not_overflow_the_sum(device: str) -> None:
    x = torch.full((2, 4096), 65504.0, dtype=torch.float16, device=device)
    assert rms_norm(x, None).cpu().eq(1.0).all()


@each_op
def test_huge_float16(device: str, op: Op) -> None:
    """Everything computed from it stays in float32, unless it is to be rounded."""
    call = op.call((3,), 1000, torch.float16, device)
    huge = call.mapped(lambda t: (1e4 * t).clamp(-3e4, 3e4), op.activations)
    huge = huge.mapped(lambda t: 0.1 * t, op.operands)
    assert all(result.isfinite().all() for result in check(huge))
    if op.rounds:
        check(huge.under(round_intermediates=True))


@each_op_that(lambda op: op.has_second_norm_of_a_sum)
def test_sums_past_float16_are_infinite_when_rounded_only(device: str, op: Op) -> None:
    optional_scale = [name for name in op.named("scale") if op.tensors[name].optional]
    huge = op.call((2,), 64, torch.float16, device, missing=optional_scale)
    values = {"input": 6e4, "residual": 6e4, "experts": 6e4, "weight": 6e3, "scale": 0.5}
    for role, value in values.items():
        huge = huge.mapped(lambda t, value=value: torch.full_like(t, value), op.named(role))
    kept, rounded = check(huge), check(huge.under(round_intermediates=True))
    infinite = [r.isinf().all().item() for r in kept]
    assert any(infinite) and not all(infinite)  # the sum as it is written; its norm is finite
    assert any(r.isnan().any() for r in rounded)  # infinity / infinity


@pytest.mark.skipif(sys.platform == "darwin", reason="a GPU may take denormals for zero")
@each_dtype
@each_op
def test_denormals(device: str, op: Op, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal / 16
    call = op.call((3,), 100, dtype, device)
    check(call.mapped(lambda t: tiny * t, op.activations))
    for name in op.operands:
        check(call.mapped(lambda t: tiny * t, [name]))


def test_zeros_keep_their_sign(device: str) -> None:
    x = torch.tensor([[0.0, -0.0, 1.0, -1.0]], device=device)
    weight = torch.tensor([1.0, 1.0, 0.0, -0.0], device=device)
    theirs = F.rms_norm(x.cpu(), (4,), weight.cpu(), 1e-6)
    assert_same_bits(rms_norm(x, weight), theirs)


@each_dtype
@each_op
def test_zeros_have_the_sign_of_single_ops(device: str, op: Op, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def zeros_and_ones(t: torch.Tensor) -> torch.Tensor:
        pick = torch.randint(4, t.shape, generator=generator)
        return torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=t.dtype)[pick].to(t.device)

    call = op.call((6,), 48, dtype, device).mapped(zeros_and_ones).that_has_a_chain
    call = call.under(round_intermediates=True) if op.rounds else call
    assert_all_same_bits(call(), call.chain())
