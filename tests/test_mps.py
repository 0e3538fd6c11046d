"""What holds for the MPS host code and its kernels alone, seen through the Metal simulator."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from subprocess import CompletedProcess

import metal_sim
import pytest
import torch
from beside import beside, run_programs
from conftest import mps_refusal
from forked import Program
from metal_sim import product
from ops import Call, Op, assert_all_same_bits, each_op
from tensors import DTYPES, misaligned, type_id

import torch_mlxnorm
from torch_mlxnorm import rms_norm

TESTS = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("simulated_mps")

# Of 16-bit rows, with the kernel that is made for them.
LENGTHS = {24: "simd", 128: "simd", 2816: "row", 32768: "row", 33000: "loop"}


def test_a_device_that_refuses_memory_is_skipped_with_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mps_refusal() is None

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("MPS backend out of memory")

    monkeypatch.setattr(torch, "zeros", refuse)
    assert mps_refusal() == "this Mac's MPS device does not work: MPS backend out of memory"


@pytest.mark.parametrize("access", ["vector", "scalar"])
@pytest.mark.parametrize("elements", LENGTHS, ids=lambda n: f"{n * 2}_bytes")
@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@each_op
def test_thread_order_does_not_change_a_bit(
    op: Op, dtype: torch.dtype, elements: int, access: str
) -> None:
    """Every kernel, with threads run forward, reversed and shuffled; with all tensors, and with as
    few as there may be, in short rows under other options, too. Aligned rows are planned as if they
    were many, the others as what they are: few."""
    dim = elements if dtype != torch.float32 else elements // 2
    dim += dim % 32 if op.rotates else 0  # both halves are whole words
    rows = 3 if elements < 10_000 else 2
    call = op.call((rows,), dim, dtype, "mps", mixed=1, scale=op.scale_kinds[-1])
    expected = call()
    if access == "scalar":
        call = call.mapped(misaligned, call.rowwise)
    llama = {"casting_mode": "llama", "weight_offset": 1.0}
    llama |= {"round_intermediates": True} if op.rounds else {}
    bare = call.having(**dict.fromkeys(op.optional))
    variants = [call, bare] if access == "vector" else [call]
    if rows == 3 and access == "vector":
        variants.append(call.under(**llama))

    def run() -> list[tuple[torch.Tensor, ...]]:
        with product.planned_for_many_rows() if access == "vector" else nullcontext():
            return [variant() for variant in variants]

    # The kernels of bfloat16 are those of float16 but for how an element is converted.
    one_order = dtype == torch.bfloat16
    results = run() if one_order else metal_sim.assert_order_independent(run, 1, op.name)
    assert_all_same_bits(results[0], expected)
    with metal_sim.thread_order("forward"):
        call()
        torch.mps.synchronize()
        (kernel,) = metal_sim._kernels_run()
        length = rf"{LENGTHS[elements]}(_\d)?"
        assert re.fullmatch(f"{op.name}_{length}_{type_id(dtype)}_{access}", kernel)


@pytest.mark.parametrize("dim", [40, 136, 1000, 2816, 6144, 12288])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@each_op
def test_bits_do_not_depend_on_the_plan(op: Op, dtype: torch.dtype, dim: int) -> None:
    """Many rows have other threads and words of a thread than few: 6144 elements in float32, too.
    Its bits show another order of a sum, in one row of ten."""
    rows = 24 if dim == 6144 and dtype == torch.float32 else 2
    call = op.call((rows,), dim, dtype, "mps")
    few = call()
    with product.planned_for_many_rows():
        assert_all_same_bits(call(), few)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=type_id)
def test_a_16_bit_weight_beside_float32_needs_8_bytes(dtype: torch.dtype) -> None:
    """What belongs to a word of float32. Other alignments take the scalar kernel."""
    x = torch.ones(2, 256, device="mps")
    storage = torch.ones(512, dtype=dtype, device="mps")
    record = torch_mlxnorm.RmsNormRecord(torch.float32, 2, 256, weight_dtype=dtype, device="mps")
    for offset in (0, 4, 8, 2, 1):
        access = "vector" if offset % 4 == 0 else "scalar"
        weight = storage[offset:][:256]
        for run in (rms_norm, lambda x, weight: record(x, weight, torch.empty_like(x))):
            with metal_sim.thread_order("forward"):
                run(x, weight)
                torch.mps.synchronize()
                assert metal_sim._kernels_run() == [f"rms_norm_simd_2_float32_{access}"]


def strided_rows(call: Call) -> Call:
    """Read where they are: leading dimensions that fold into no fewer than two, rows apart."""

    def spread(t: torch.Tensor) -> torch.Tensor:
        base = torch.empty(
            t.shape[1], t.shape[0], *t.shape[2:-1], t.shape[-1] + 8, dtype=t.dtype, device=t.device
        )
        return base.transpose(0, 1)[..., : t.shape[-1]].copy_(t)

    return call.mapped(spread, call.rowwise)


@each_op
def test_encodes_one_dispatch_and_nothing_else(op: Op) -> None:
    call = op.call((4, 6), 16, torch.float16, "mps", float32="odd", scale=op.scale_kinds[-1])
    call = strided_rows(call)
    call()
    torch.mps.synchronize()

    metal_sim.reset_stats()
    outs = call()
    call(out=outs)
    stats = metal_sim.stats()
    assert stats["dispatches"] == 2
    for nothing in ("commits", "outside_commits", "synchronizations", "copies", "cpu_fallbacks"):
        assert stats[nothing] == 0, nothing
    assert stats["buffers"] == len(op.results)
    for cached in ("libraries", "functions", "pipelines"):
        assert stats[cached] == 0, cached


# Of a kernel: dim, rows, and how many threads a dispatch may have so that it takes two to seven.
SEVERAL = {"simd": (24, 150, 256), "row": (1000, 7, 256), "loop": (16500, 7, 3 * 1024)}


@pytest.mark.parametrize("kernel", SEVERAL)
@each_op
def test_several_dispatches_give_the_bits_of_one(op: Op, kernel: str) -> None:
    """Pipeline and buffers are set for each: the encoder forgets them. Real grids take several from
    2^31 threads on."""
    dim, rows, most = SEVERAL[kernel]
    call = op.call((rows, 1), dim, torch.float32, "mps", scale=op.scale_kinds[-1], top_k=2)
    call = strided_rows(call)
    expected = call()
    with product.max_grid_threads(most * (len(op.results) if op.has_segments else 1)):
        metal_sim.reset_stats()
        results = call()
    assert metal_sim.stats()["dispatches"] in range(2, 8)
    assert_all_same_bits(results, expected)


def test_several_dispatches_of_a_record() -> None:
    x, out = torch.randn(7, 1000).to("mps"), torch.empty(7, 1000, device="mps")
    with product.max_grid_threads(3 * 128):
        record = torch_mlxnorm.RmsNormRecord(torch.float32, 7, 1000, has_weight=False, device="mps")
    metal_sim.reset_stats()
    record(x, None, out)
    assert metal_sim.stats()["dispatches"] == 3
    assert_all_same_bits([out], [rms_norm(x, None)])


@each_op
def test_no_rows_encode_nothing(op: Op) -> None:
    call = op.call((0,), 64, torch.float32, "mps")
    metal_sim.reset_stats()
    call()
    assert metal_sim.stats()["dispatches"] == 0


@each_op
def test_libraries_keep_nan(op: Op) -> None:
    """Fast math would let the compiler assume that there is none."""
    op.call((2,), 64, torch.float32, "mps")()
    assert metal_sim.stats()["fast_math_libraries"] == 0


@each_op
def test_pipelines_are_made_once(op: Op) -> None:
    """One for each kernel, dtypes and options; rows, eps, weight_offset and the values of a scale
    do not ask for more."""
    many = op.call((40,), 1000, torch.bfloat16, "mps")
    bare = many.having(**dict.fromkeys(op.optional))
    for options in ({}, {"casting_mode": "llama"}):
        warm = [many.rows(slice(1)), many, bare.rows(slice(2)), bare]
        for call in warm:
            call.under(**options)()
        metal_sim.reset_stats()
        many.rows(slice(7)).under(eps=1e-5, **options)()
        many.rows(slice(2, None)).under(weight_offset=1.0, **options)()
        bare.rows(slice(3, None)).under(eps=1e-5, **options)()
        assert metal_sim.stats()["pipelines"] == 0
    op.call((40,), 1000, torch.float32, "mps").under(eps=1e-3)()
    assert metal_sim.stats()["pipelines"] <= 1


@each_op
def test_no_object_is_leaked(op: Op) -> None:
    call = op.call((4,), 256, torch.float32, "mps")
    copied = call.mapped(lambda t: t.t().contiguous().t(), op.inputs)

    def live_after_calls() -> dict[str, int]:
        for _ in range(5):
            call()
            copied()
        torch.mps.synchronize()
        return metal_sim.live_objects()

    assert live_after_calls() == live_after_calls()


# ---- rows longer than a kernel can count --------------------------------------------------------

TOO_LONG = 2**31 + 1


def test_a_row_that_the_kernels_cannot_count_is_an_error() -> None:
    x = torch.empty(TOO_LONG, dtype=torch.float16, device="mps")  # lazily mapped
    metal_sim.reset_stats()
    expected = "x must have a last dimension of at most 2147483648 on mps:0, got 2147483649"
    with pytest.raises(RuntimeError, match=f"mlxnorm::rms_norm: {expected}"):
        rms_norm(x, None)
    with pytest.raises(RuntimeError, match=expected):
        rms_norm(x, None, out=x)
    assert metal_sim.stats()["buffers"] == metal_sim.stats()["dispatches"] == 0


@each_op
def test_every_op_checks_that(op: Op) -> None:
    call = op.call((2,), 1, torch.float16, "mps", scale="one")
    longer = op.named("weight", "bias", "per_channel") + op.activations
    call = call.mapped(lambda t: t.expand(*t.shape[:-1], TOO_LONG), longer)
    metal_sim.reset_stats()
    which = "dimension 1" if op.has_channels else "last dimension"
    expected = f"{op.first} must have a {which} of at most 2147483648 on mps:0, got"
    with pytest.raises(RuntimeError, match=f"mlxnorm::{op.name}: {expected} {TOO_LONG}"):
        call()
    assert metal_sim.stats()["buffers"] == metal_sim.stats()["dispatches"] == 0


def test_heads_that_the_kernels_cannot_count_together_are_an_error() -> None:
    q, angle = torch.ones(4, 2, device="mps"), torch.ones(1, device="mps")
    k = q[:1].expand(2**30 + 1, 2)
    metal_sim.reset_stats()
    expected = "k must have heads of together at most 2147483648 on mps:0, got 2147483650"
    with pytest.raises(RuntimeError, match=f"mlxnorm::qk_norm_rope: {expected}"):
        torch_mlxnorm.qk_norm_rope(q, k, None, None, angle, angle, across_heads=True)
    assert metal_sim.stats()["buffers"] == metal_sim.stats()["dispatches"] == 0


# ---- TORCH_MLXNORM_ACCESS -----------------------------------------------------------------------

ACCESS = """
import torch, metal_sim
metal_sim.enable()
import torch_mlxnorm
from torch_mlxnorm import rms_norm
x = torch.arange(200.0).view(2, 100).to("mps")
print(rms_norm(x, None).cpu().view(torch.int32).sum().item())
print(rms_norm(x[:, 1:], None).shape)
"""


def test_experts_that_the_kernels_cannot_count_are_an_error() -> None:
    one = torch.ones(1, 8, device="mps")
    experts = one.unsqueeze(1).expand(1, 2**32, 8)
    routing_weights = torch.ones(1, 1, device="mps").expand(1, 2**32)
    metal_sim.reset_stats()
    expected = "a top_k dimension of at most 4294967295 on mps:0, got 4294967296"
    with pytest.raises(RuntimeError, match=f"expert_outputs must have {expected}"):
        torch_mlxnorm.fused_moe_wsum_post_ff_norm2_endlayer(
            experts, routing_weights, one, one, one[0], one[0], one[0]
        )
    assert metal_sim.stats()["buffers"] == metal_sim.stats()["dispatches"] == 0


CHOICES = {
    ("ACCESS", "scalar"): None,
    ("ACCESS", "vector"): "TORCH_MLXNORM_ACCESS=vector needs rows of a multiple of 16 bytes",
    ("ACCESS", "fast"): 'TORCH_MLXNORM_ACCESS must be "scalar", "vector" or unset, got "fast"',
    # The name that the variable had before.
    ("KERNEL", "vector"): "TORCH_MLXNORM_ACCESS=vector needs rows of a multiple of 16 bytes",
}


@beside
def chosen() -> dict[tuple[str, str], CompletedProcess[str]]:
    programs = [
        Program(ACCESS, path=[str(TESTS)], environment={f"TORCH_MLXNORM_{variable}": choice})
        for variable, choice in CHOICES
    ]
    return dict(zip(CHOICES, run_programs(programs), strict=True))


@pytest.mark.parametrize(("variable", "choice"), CHOICES)
def test_access_of_the_environment(
    variable: str, choice: str, chosen: dict[tuple[str, str], CompletedProcess[str]]
) -> None:
    done, error = chosen[variable, choice], CHOICES[variable, choice]
    if error is None:
        assert done.returncode == 0, done.stderr
    else:
        assert f"ValueError: {error}" in done.stderr
    if choice != "fast":
        x = torch.arange(200.0).view(2, 100).to("mps")
        expected = rms_norm(x, None).cpu().view(torch.int32).sum().item()
        assert done.stdout.splitlines()[0] == str(expected)
