"""channel_rms_norm: what other suites, which have rows of channels next to one another, do not see.
Contiguous memory and slices of it, against float64, PyTorch and channels-last memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, get_args

import metal_sim
import pytest
import torch
import torch.nn.functional as F
from metal_sim import product
from ops import OPS, Call, assert_all_same_bits, assert_allowed, channels_first, check
from oracle import assert_same_bits, different_bits
from tensors import DTYPES, POISON, Guarded, assert_only_written, misaligned, randn, type_id
from torch import Tensor, nn

import torch_mlxnorm
from torch_mlxnorm import ChannelForm, ChannelRMSNorm, channel_rms_norm, rms_norm

OP = OPS["channel_rms_norm"]
FORMS = get_args(ChannelForm)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=type_id)

# Of each number of registers and of threads that share a column, not filling them; more than there
# are registers, and than a row may have in its.
CHANNELS = [
    1,
    2,
    7,
    16,
    33,
    48,
    64,
    96,
    100,
    128,
    192,
    250,
    256,
    384,
    400,
    512,
    700,
    1000,
    1025,
    2100,
]
# Lines of whole words, of a part of one, and between boundaries.
POSITIONS = [(1,), (3,), (8,), (5, 7), (2, 3, 40), (300,)]


def contiguous(leading: tuple[int, ...], channels: int, dtype: torch.dtype, **more: Any) -> Call:
    return OP.call(leading, channels, dtype, **more).with_channels_apart()


# ---- values and bits ----------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("channels", CHANNELS)
def test_contiguous(device: str, channels: int, dtype: torch.dtype) -> None:
    """As float64 has it, in fresh results and in outs, and to the bit as channels-last memory."""
    for positions in POSITIONS:
        if channels * torch.Size(positions).numel() > 60_000:
            continue
        call = contiguous((2, *positions), channels, dtype, device=device, mixed=1)
        results = check(call)
        assert channels_first(results[0]).is_contiguous()
        assert_all_same_bits(results, call.mapped(Tensor.contiguous)())
        assert_all_same_bits(call.mapped(misaligned_channels, ["x"])(), results)
        if device == "mps":
            with product.planned_for_many_rows():
                assert_all_same_bits(call(), results)


def misaligned_channels(rows: Tensor) -> Tensor:
    return misaligned(channels_first(rows)).movedim(1, -1)


@each_dtype
@pytest.mark.parametrize("form", FORMS)
def test_forms(device: str, form: ChannelForm, dtype: torch.dtype) -> None:
    for silu, missing, casting_mode in itertools.product(
        [False, True], [(), ("bias",), ("gamma",), ("gamma", "bias")], ["gemma", "llama"]
    ):
        call = OP.call((2, 37), 96, dtype, device, missing=missing, float32="odd")
        call = call.under(form=form, silu=silu, casting_mode=casting_mode, weight_offset=0.5)
        results = check(call)
        assert_all_same_bits(call.with_channels_apart()(), results)
        small = call.mapped(lambda t: 1e-3 * t, ["x"])
        for eps in (1e-2, 1e-6, 0.0, None):
            check(small.under(eps=eps))


@pytest.mark.parametrize("form", ["normalize", "normalize_float32"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=type_id)
def test_quotients(device: str, dtype: torch.dtype, form: ChannelForm) -> None:
    """As divisions round them, whatever is computed in their place: all numbers of 16 bits, but for
    their exponents, by each other; and by what makes them ties, or nearly so."""
    numbers = round(1 / torch.finfo(dtype).eps)
    channels = 4 ** (numbers.bit_length() // 2)  # of which the root is exact
    number = 1 + torch.arange(channels) % numbers / numbers
    x = (number * (-1) ** torch.arange(channels)).to(dtype)
    more_than_norm = 2 * channels**0.5
    if form == "normalize":
        divisors = more_than_norm * number[:numbers].unique()
    else:
        chosen = torch.randint(numbers, (2, 300), generator=torch.Generator().manual_seed(0))
        ties = 1 + (chosen[0] + 0.5) / numbers
        divisors = 2 * more_than_norm * number[chosen[1]] / ties
    rows = x.expand(9, -1).contiguous().t()[None].to(device)
    for divisor in divisors.tolist():
        expected = (x.float() / divisor).to(dtype) * channels**0.5
        for columns in (rows.contiguous(), rows):
            result = channel_rms_norm(columns, None, eps=divisor, form=form)
            assert_same_bits(result[0, :, 4], expected)


@each_dtype
@pytest.mark.parametrize("form", FORMS)
def test_zeros_keep_their_signs(device: str, form: ChannelForm, dtype: torch.dtype) -> None:
    call = OP.call((2, 37), 96, dtype, device, missing=("gamma", "bias"), form=form)
    for each in (call, call.with_channels_apart()):
        x = each.tensors["x"]
        x[..., ::2] = torch.tensor([0.0, -0.0]).repeat(24)
        (result,) = each()
        assert torch.equal(result.signbit(), x.signbit())


@each_dtype
@pytest.mark.parametrize("form", ["rms", "normalize"])
def test_more_channels_than_a_row_holds(device: str, form: str, dtype: torch.dtype) -> None:
    """Equal in both memory formats up to there; above, each as float64 has it."""
    at_most = 16384 if dtype == torch.float32 else 32768
    for channels in (at_most - 3, at_most + 40):
        call = OP.call((1, 9), channels, dtype, device, form=form)
        for each in (call, call.with_channels_apart()):
            assert_allowed(each, each())
        if device == "cpu" or channels <= at_most:
            assert_all_same_bits(call.with_channels_apart()(), call())


@each_dtype
def test_columns_give_the_same_bits_in_any_batch(device: str, dtype: torch.dtype) -> None:
    """Whatever the positions, and threads that share them: few are planned otherwise than many."""
    for channels in (96, 200, 384):
        call = contiguous((3, 450), channels, dtype, device=device)
        (whole,) = call()
        for n, positions in ((0, slice(None)), (1, slice(0, 9)), (2, slice(33, 34))):
            part = call.mapped(
                lambda t, n=n, p=positions: (
                    t[n : n + 1, p].movedim(-1, 1).contiguous().movedim(1, -1)
                ),
                ["x"],
            )
            assert_same_bits(part()[0], whole[n : n + 1, positions])
    if device == "mps":
        with product.planned_for_many_rows():
            assert_same_bits(call()[0], whole)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=type_id)
@pytest.mark.parametrize(("scale", "small"), [(1.0, 1e-8), (1e-3, 1e-6)])
@pytest.mark.parametrize("shape", [(1, 96, 5, 24, 40), (2, 384, 1, 16, 17)], ids=str)
def test_agrees_with_pytorch(
    device: str, shape: tuple[int, ...], scale: float, small: float, dtype: torch.dtype
) -> None:
    """The code that models have, in 16 bits."""
    channels = shape[1]
    x = randn(*shape, dtype=dtype) * scale
    gamma, bias = (randn(channels, 1, 1, 1, dtype=dtype, seed=seed) for seed in (1, 2))
    rms = torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + small)
    float32_rms = torch.rsqrt(x.float().pow(2).mean(1, keepdim=True) + small)
    theirs: dict[ChannelForm, Tensor] = {
        "normalize": F.normalize(x, dim=1) * channels**0.5 * gamma + bias,
        "normalize_float32": F.normalize(x.float(), dim=1).to(dtype) * channels**0.5 * gamma + bias,
        "rms": (x * float32_rms).to(dtype) * gamma + bias,
        "rms_steps": x / rms * gamma + bias,
    }
    for form, expected in theirs.items():
        eps = 1e-12 if form.startswith("normalize") else small
        mode = {"casting_mode": "llama"} if form == "rms" else {}
        tensors = (t.to(device) for t in (x, gamma, bias))
        ours = channel_rms_norm(*tensors, eps, form=form, **mode).cpu()
        equal = 1.0 - different_bits(ours, expected).double().mean().item()
        assert equal > 0.999, form
        tensors = (t.to(device) for t in (x, gamma, bias))
        activated = channel_rms_norm(*tensors, eps, form=form, silu=True, **mode).cpu()
        assert (activated == F.silu(expected)).double().mean() > 0.998, form


def test_zeros_in_float16(device: str) -> None:
    """An eps that float16 takes for 0 is not rounded; F.normalize gives NaN."""
    x = torch.zeros(1, 8, 20, dtype=torch.float16)
    assert F.normalize(x, dim=1).isnan().all()
    assert channel_rms_norm(x.to(device), None).eq(0.0).all()


@each_dtype
def test_nan_and_infinity_stay_in_their_columns(device: str, dtype: torch.dtype) -> None:
    x = randn(1, 40, 24, dtype=dtype)
    x[0, 3, 1], x[0, 7, 5], x[0, 9, 20] = float("nan"), float("inf"), -float("inf")
    for form in FORMS:
        result = channel_rms_norm(x.to(device), None, form=form).cpu()[0]
        broken = result.isnan().any(0).nonzero().flatten().tolist()
        assert broken == [1, 5, 20]
        assert result[:, 1].isnan().all()


# ---- memory -------------------------------------------------------------------------------------

# From [2, 6, 5, 8, 24]; the format that a result has is x's.
MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last_3d),
    "crop": lambda t: t[..., 1:6, 2:15],
    "frames": lambda t: t[:, :, 1:4],
    "every other frame": lambda t: t[:, :, ::2],
    "some channels": lambda t: t[:, 1:5],
    "every other channel": lambda t: t[:, ::2],
    "some channels, last": lambda t: t.to(memory_format=torch.channels_last_3d)[:, 1:4],
    "crop, last": lambda t: t.to(memory_format=torch.channels_last_3d)[..., 1:6, 2:15],
    "frames first": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "width before height": lambda t: t.transpose(3, 4).contiguous().transpose(3, 4),
    "batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "one channel": lambda t: t[:, :1],
    "3-d": lambda t: t[:, :, 0, 0],
    "2-d": lambda t: t[:, :, 0, 0, 0].contiguous(),
}
OVERLAPPING: dict[str, Callable[[Tensor], Tensor]] = {
    "channels expanded": lambda t: t[:, :1].expand(-1, 6, -1, -1, -1),
}
COPIED: dict[str, Callable[[Tensor], Tensor]] = {
    "every other column": lambda t: t[..., ::2],
    "expanded": lambda t: t[..., :1].expand(-1, -1, -1, -1, 24),
    "of one element": lambda t: t.new_tensor(0.5).expand(2, 6, 3),
    "one position": lambda t: t[..., :1, :1, :1],
    "2-d, apart": lambda t: t[:, :, 0, 0, 0],
}
ALL = MEMORY | OVERLAPPING | COPIED
OUTS = [name for name in ALL if name not in ("expanded", "of one element", "channels expanded")]
BASE = (2, 6, 5, 8, 24)


def names_of_copies(run: Callable[[], object]) -> set[str]:
    with torch.autograd.profiler.profile() as profile:
        run()
    return {event.name for event in profile.function_events} & {"aten::copy_", "aten::contiguous"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@pytest.mark.parametrize("memory", ALL)
def test_memory(device: str, memory: str, dtype: torch.dtype) -> None:
    x = ALL[memory](randn(*BASE, dtype=dtype, device=device))
    shape = (x.shape[1], *[1] * (x.dim() - 2))
    gamma, bias = (randn(*shape, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    expected = channel_rms_norm(x.contiguous(), gamma, bias)
    result = channel_rms_norm(x, gamma, bias)
    assert_same_bits(result, expected)
    assert result.stride() == torch.empty_like(x).stride()
    meta = channel_rms_norm(*(t.to("meta") for t in (x, gamma, bias)))
    assert meta.stride() == result.stride()
    copies = names_of_copies(lambda: channel_rms_norm(x, gamma, bias, out=result))
    assert bool(copies) == (memory in COPIED)


@pytest.mark.parametrize("out_memory", OUTS)
@pytest.mark.parametrize("memory", ["contiguous", "channels last", "crop", "every other column"])
def test_memory_of_out(device: str, memory: str, out_memory: str) -> None:
    """Any, whatever x has: the same bits, and nothing else is written."""
    like = ALL[out_memory](torch.empty(BASE, device="meta"))
    values = randn(*like.shape, device=device)
    rank = like.dim()
    if rank == 5:
        padded = values.new_zeros(*like.shape[:-2], like.shape[-2] + 2, 2 * like.shape[-1])
        x = {
            "contiguous": values,
            "channels last": values.contiguous(memory_format=torch.channels_last_3d),
            "crop": padded[..., 1:-1, : like.shape[-1]],
            "every other column": padded[..., 1:-1, ::2],
        }[memory].copy_(values)
    else:
        x = values
    storage = torch.full(BASE, POISON, device=device)
    out = ALL[out_memory](storage)
    assert channel_rms_norm(x, None, out=out) is out
    assert_same_bits(out, channel_rms_norm(values, None))
    assert_only_written(out, POISON)


@pytest.mark.parametrize("memory", OUTS)
def test_in_place(device: str, memory: str) -> None:
    storage = randn(*BASE, device=device)
    x = ALL[memory](storage)
    expected = channel_rms_norm(x.clone(), None)
    channel_rms_norm(x, None, out=x)
    assert_same_bits(x, expected)


def test_operands_that_broadcast(device: str) -> None:
    """Of any shape with all channels, one for all of the batch or for each, strided or not."""
    for memory, dtype in itertools.product(("contiguous", "channels last"), DTYPES):
        x = MEMORY[memory](randn(*BASE, dtype=dtype, device=device))
        gamma = randn(6, device=device, seed=1)
        expected = channel_rms_norm(x, gamma, gamma)
        for shape in ((6, 1, 1, 1), (1, 6, 1, 1, 1)):
            same = gamma.view(shape)
            assert_same_bits(channel_rms_norm(x, same, same), expected)
        apart = randn(6, 5, device=device).copy_(gamma[:, None])[:, 2]
        assert_same_bits(channel_rms_norm(x, apart, apart.view(6, 1, 1, 1)), expected)
        assert_same_bits(
            channel_rms_norm(x, gamma[:1].expand(6), gamma),
            channel_rms_norm(x, gamma[:1].expand(6).contiguous(), gamma),
        )
        each = randn(2, 6, 1, 1, 1, device=device, seed=2)
        of_samples = [channel_rms_norm(x[i : i + 1], each[i], gamma) for i in range(2)]
        assert_same_bits(channel_rms_norm(x, each, gamma), torch.cat(of_samples))


def test_operands_of_each_of_a_batch_that_is_innermost(device: str) -> None:
    """Neighbours in memory have others: a copy has them apart."""
    x = MEMORY["batch innermost"](randn(*BASE, device=device))
    each = randn(2, 6, 1, 1, 1, device=device, seed=2)
    assert_same_bits(channel_rms_norm(x, each), channel_rms_norm(x.contiguous(), each))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (0, 4), (2, 4, 0, 5)], ids=str)
def test_empty(device: str, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, device=device)
    assert channel_rms_norm(x, torch.ones(4, device=device)).shape == shape


def test_nothing_beside_out_is_written(device: str) -> None:
    for positions, dtype in itertools.product((1, 7, 8, 65, 300), DTYPES):
        x = randn(2, 20, positions, dtype=dtype, device=device)
        guarded = Guarded(x.shape, dtype, x.device)
        assert_same_bits(channel_rms_norm(x, None, out=guarded.tensor), channel_rms_norm(x, None))
        guarded.assert_intact_around()


def test_errors_of_shapes(where: str) -> None:
    x = torch.ones(2, 8, 3, 4, device=where)
    fits = r"must have shape \[8\], or an element for each channel in a shape that broadcasts to "
    fits += r"\[2, 8, 1, 1\] \(as x\), got shape "
    for shape in (
        (3, 4),
        (1, 3, 4),
        (8, 3, 1),
        (8, 1),
        (2, 1, 1, 1),
        (3, 8, 1, 1),
        (1, 1, 8, 1, 1),
    ):
        wrong = torch.ones(shape, device=where)
        with pytest.raises(RuntimeError, match=f"gamma {fits}"):
            channel_rms_norm(x, wrong)
        with pytest.raises(RuntimeError, match=f"bias {fits}"):
            channel_rms_norm(x, None, wrong)


@pytest.mark.parametrize("over", [0, 2, 8])
def test_out_that_shares_memory(device: str, over: int) -> None:
    storage = torch.ones(600, device=device)
    x, out = (storage[begin:][:480].view(2, 8, 30) for begin in (0, over))
    if over == 0:
        channel_rms_norm(x, None, out=out)
        return
    with pytest.raises(
        RuntimeError, match="out must not share memory with x unless it is the same"
    ):
        channel_rms_norm(x, None, out=out)


# ---- on MPS -------------------------------------------------------------------------------------


# Channels of each kernel, by octets that a thread has of them.
OCTETS = {"1": 125, "2": 250, "3": 96, "4": 1000, "long": 1100}


@pytest.mark.mps
@pytest.mark.parametrize("octets", OCTETS)
@pytest.mark.parametrize("positions", [64, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=type_id)
def test_thread_order_does_not_change_a_bit(
    simulated_mps: str, dtype: torch.dtype, positions: int, octets: str
) -> None:
    """Every kernel, with threads run forward, reversed and shuffled, planned for few and many."""
    channels = OCTETS[octets]
    x = randn(1, channels, positions, dtype=dtype)
    expected = channel_rms_norm(x.movedim(1, -1).contiguous().movedim(-1, 1).to("mps"), None)
    given = x.to("mps")

    def run() -> list[tuple[Tensor, ...]]:
        with product.planned_for_many_rows():
            many = channel_rms_norm(given, None)
        return [(channel_rms_norm(given, None),), (many,)]

    for (result,) in metal_sim.assert_order_independent(run, 1, octets):
        assert_same_bits(result, expected)
    with metal_sim.thread_order("forward"):
        run()
        torch.mps.synchronize()
        access = "vector" if positions % 8 == 0 else "scalar"
        kind = "long_columns" if octets == "long" else f"columns_{octets}"
        assert f"{OP.name}_{kind}_{type_id(dtype)}_{access}" in metal_sim._kernels_run()


@pytest.mark.mps
def test_a_dispatch_at_most_so_large(simulated_mps: str) -> None:
    """Lines are shared out among several."""
    x = randn(3, 96, 500, dtype=torch.bfloat16, device="mps")
    expected = channel_rms_norm(x, None)
    with product.max_grid_threads(200):
        metal_sim.reset_stats()
        assert_same_bits(channel_rms_norm(x, None), expected)
        assert metal_sim.stats()["dispatches"] > 3


@pytest.mark.mps
@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_warm_up(simulated_mps: str, dtype: torch.dtype) -> None:
    """Both memory formats, few positions and many, words and parts of them."""
    torch_mlxnorm.warm_up(OP.name, dtype, [72, 1100], form="normalize", silu=True, unaligned=True)
    metal_sim.reset_stats()
    for channels, positions in itertools.product([72, 1100], [3, 64, 9000]):
        if channels * positions < 700_000:
            x = randn(1, channels, positions, dtype=dtype, device="mps")
            for given in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
                channel_rms_norm(given, None, silu=True)
                gamma = torch.ones(channels, dtype=dtype, device="mps")
                channel_rms_norm(given, gamma, gamma, silu=True)
    assert metal_sim.stats()["pipelines"] == 0


# ---- transforms ---------------------------------------------------------------------------------


def test_vmap_over_operands(device: str) -> None:
    x = randn(3, 2, 6, 5, 4, device=device)
    gammas = [randn(*shape, device=device) for shape in ((3, 6), (3, 6, 1, 1), (3, 2, 6, 1, 1))]
    bias = randn(6, 1, 1, device=device, seed=3)
    for gamma in gammas:
        expected = torch.stack([channel_rms_norm(x[i], gamma[i], bias) for i in range(3)])
        assert_same_bits(torch.vmap(lambda x, g: channel_rms_norm(x, g, bias))(x, gamma), expected)
        shared = torch.stack([channel_rms_norm(x[0], gamma[i], bias) for i in range(3)])
        assert_same_bits(torch.vmap(lambda g: channel_rms_norm(x[0], g, bias))(gamma), shared)
        out = torch.empty_like(x)
        torch.vmap(lambda x, g, out: channel_rms_norm(x, g, bias, out=out))(x, gamma, out)
        assert_same_bits(out, expected)


def test_vmap_over_positions(device: str) -> None:
    x, gamma = randn(3, 2, 6, 5, 4, device=device), randn(6, 1, device=device)
    for dim in (3, 4):
        expected = torch.stack([channel_rms_norm(t.flatten(0, 1), gamma) for t in x.unbind(dim)])
        mapped = torch.vmap(lambda t: channel_rms_norm(t.flatten(0, 1), gamma), in_dims=dim)
        assert_same_bits(mapped(x), expected)


def jagged(*lengths: int, channels: int = 6) -> Tensor:
    rows = [randn(n, channels, seed=n) for n in lengths]
    return torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)


def test_jagged() -> None:
    """[B, C, j]; one of gamma and bias for all of the batch."""
    x, gamma = jagged(3, 5), randn(6, seed=9)
    result = channel_rms_norm(x, gamma.view(6, 1), gamma.view(1, 6, 1))
    for ours, one in zip(result.unbind(), x.unbind(), strict=True):
        assert_same_bits(ours, channel_rms_norm(one.unsqueeze(0), gamma, gamma)[0])
    with pytest.raises(RuntimeError, match="gamma must be one for all of the batch, got shape"):
        channel_rms_norm(x, torch.ones(2, 6, 1))
    with pytest.raises(RuntimeError, match="x must not be ragged in dimension 1"):
        channel_rms_norm(x.transpose(1, 2), None)


# ---- the module ---------------------------------------------------------------------------------


class Norm(nn.Module):
    """As models of video have it."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(randn(channels, 1, 1, 1))
        self.bias = nn.Parameter(randn(channels, 1, 1, 1, seed=1)) if bias else 0.0
        self.scale = channels**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.scale * self.gamma + self.bias


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_module(bias: bool) -> None:
    theirs = Norm(24, bias).bfloat16()
    ours = ChannelRMSNorm(24, bias=bias, dtype=torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    x = randn(2, 24, 3, 5, 4, dtype=torch.bfloat16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0.0, atol=0.0)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(x), ours(x))
    assert_same_bits(torch.fx.symbolic_trace(ours)(x), ours(x))
    assert_same_bits(torch.jit.trace(ours, x)(x), ours(x))
    assert_same_bits(torch.export.export(ours, (x,)).module()(x), ours(x))


@torch.no_grad()
def test_module_options() -> None:
    x = randn(2, 24, 5, 4)
    plain = ChannelRMSNorm(24, dims=2, affine=False, form="rms", eps=1e-6)
    assert not list(plain.parameters())
    assert_same_bits(plain(x), rms_norm(x.movedim(1, -1), None, 1e-6).movedim(-1, 1))
    with pytest.raises(RuntimeError, match=r"ChannelRMSNorm: x must have a dimension 1 of 24"):
        plain(x[:, :23])
    activated = ChannelRMSNorm(24, dims=2, silu=True, weight_offset=1.0)
    assert activated.gamma is not None and activated.gamma.eq(0.0).all()
    assert_same_bits(activated(x), channel_rms_norm(x, torch.ones(24), silu=True))
    assert "silu=True" in repr(activated) and "form='rms'" in repr(plain)
    with pytest.raises(ValueError, match="bias needs gamma"):
        ChannelRMSNorm(24, bias=True, affine=False)
