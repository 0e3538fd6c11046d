"""The forward tests that peers have for their norms: shapes (with fewer rows), dtypes, options and
tolerances are theirs, what is expected is written anew in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps import in_groups
from tensors import DTYPES, assert_only_written, randn
from torch import Tensor

import torch_mlxnorm as ops

F32, F16, BF16 = DTYPES
Peer = Callable[["Bench"], None]
Fault = Callable[[Any], Any]  # what an op becomes


def f32(t: Tensor) -> Tensor:
    return t.cpu().float()


def norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    bias: Tensor | None = None,
    weight_offset: float = 0.0,
    casting_mode: str = "gemma",
) -> Tensor:
    """In float32, but for what "llama" rounds to x's dtype."""
    n = f32(x) * torch.rsqrt(f32(x).square().mean(-1, keepdim=True) + eps)
    n = n.to(x.dtype).float() if casting_mode == "llama" else n
    n = n if weight is None else n * (f32(weight) + weight_offset)
    return n if bias is None else n + f32(bias)


@dataclass
class Bench:
    """Makes tensors for a device, and compares."""

    device: str
    atol: float | None = None
    rtol: float | None = None
    seed: int = 0

    def randn(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        self.seed += 1
        return randn(*shape, dtype=dtype, device=self.device, seed=self.seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        return torch.empty(shape).uniform_(low, high, generator=generator).to(self.device)

    def sliced(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """The first half of rows twice as long, whose other half is 0."""
        rows = torch.zeros(*shape[:-1], 2 * shape[-1], dtype=dtype, device=self.device)
        return rows[..., : shape[-1]].copy_(self.randn(*shape, dtype=dtype))

    def expect(self, actual: Any, expected: Any) -> None:
        """Tensors, or tuples of them."""
        of_any = {"check_device": False, "check_dtype": False}
        torch.testing.assert_close(actual, expected, atol=self.atol, rtol=self.rtol, **of_any)

    def expect_in_place(self, x: Tensor, r: Tensor, w: Tensor, expected: Any, **options: Any):
        """x and r become their norm and their sum, and nothing changes around them."""
        ops.add_rms_norm(x, r, w, **options, out=(x, r))
        self.expect((x, r), expected)
        assert_only_written(x, 0.0)
        assert_only_written(r, 0.0)


def flashinfer(t: Bench) -> None:
    """flashinfer: rmsnorm, gemma_rmsnorm, fused_add_rmsnorm, gemma_fused_add_rmsnorm, of heads, and
    fused_rmsnorm_silu. sgl-kernel has those of rows one after the other."""
    t.atol, t.rtol = 1e-3, 1e-3
    shapes = product([1, 19], [111, 500, 1024])
    for shape, new, gemma in product(shapes, [t.randn, t.sliced], [False, True]):
        x, residual = (new(*shape, dtype=F16) for _ in range(2))
        w, offset = t.randn(shape[-1], dtype=F16), {"weight_offset": float(gemma)}
        t.expect(ops.rms_norm(x, w, **offset), norm(x, w, **offset))
        t.expect(ops.rms_norm(x, w, **offset, out=torch.empty_like(x)), norm(x, w, **offset))
        total = f32(x) + f32(residual)
        both = norm(total.half() if gemma else total, w, **offset), total
        options = offset | {"round_intermediates": gemma}
        t.expect_in_place(x, residual, w, both, **options)

    for batch, heads, dim in product([1, 19], [4, 7], [64, 256]):
        x = t.randn(batch, 2 * heads, dim, dtype=F16)[:, :heads]
        for w in (t.randn(dim, dtype=F16), t.randn(heads, dim, dtype=F16)):
            t.expect(ops.rms_norm(x, w), norm(x, w))

    t.atol, t.rtol = 2e-2, 2e-2
    for (tokens, hidden), eps in product([(1, 64), (7, 128), (32, 320)], [1e-5, 1e-6, 1e-8]):
        x = (5 * t.randn(tokens, hidden) + 5).bfloat16()
        w = t.uniform(hidden, low=0.5, high=2.0).bfloat16()
        t.expect(ops.rms_norm(x, w, eps, activation="silu"), F.silu(norm(x, w, eps)))


def vllm(t: Bench) -> None:
    """vLLM: rms_norm and fused_add_rms_norm, Gemma's too, of values so small that eps counts."""
    t.atol, t.rtol = 1e-2, 1e-2
    sizes = product(DTYPES, [8, 768, 769, 5125], [t.randn, t.sliced], [0.0, 1.0])
    for dtype, hidden, new, offset in sizes:
        x, residual = (new(7, hidden, dtype=dtype).div_(2 * hidden) for _ in range(2))
        w, gemma = (1 - offset + 0.1 * t.randn(hidden)).to(dtype), {"weight_offset": offset}
        for weight in (w, w.float(), None):
            t.expect(ops.rms_norm(x, weight, **gemma), norm(x, weight, **gemma))
        total = f32(x) + f32(residual)
        both = norm(total, w, **gemma), total
        t.expect_in_place(x, residual, w, both, **gemma)


def liger(t: Bench) -> None:
    """Liger Kernel: LigerRMSNorm and LigerFusedAddRMSNorm, as Llama and as Gemma cast."""
    tolerances = {F32: (1e-4, 1e-6), BF16: (2e-1, 2e-2)}
    for dtype, size in product(tolerances, [(2, 8, 512), (5, 3, 123), (3, 4, 213), (9, 7, 41)]):
        t.atol, t.rtol = tolerances[dtype]
        for casting_mode, offset in {"llama": 0.0, "gemma": 1.0}.items():
            x, residual = (t.randn(*size, dtype=dtype) for _ in range(2))
            w = t.randn(size[-1], dtype=dtype)
            options = {"casting_mode": casting_mode, "weight_offset": offset}
            t.expect(ops.rms_norm(x, w, **options), norm(x, w, **options))
            total = x.cpu() + residual.cpu()
            both = norm(total, w, **options), total
            options["round_intermediates"] = True
            t.expect(ops.add_rms_norm(x, residual, w, **options), both)
            t.expect_in_place(x, residual, w, both, **options)


def quack(t: Bench) -> None:
    """quack: rmsnorm, with weights of another dtype than x, long rows, a bias, a residual."""
    for (dtype, atol), kind in product({F32: 1e-4, F16: 1e-2, BF16: 1e-1}.items(), [None, *DTYPES]):
        t.atol, t.rtol = atol, 1e-3
        for dim, eps in product([192, 760, 1128, 4096], [1e-5, 1e-6]):
            x, w = t.randn(3, dim, dtype=dtype), kind and t.randn(dim, dtype=kind)
            t.expect(ops.rms_norm(x, w, eps), norm(x, w, eps))
    for x in (t.randn(1, 262144, dtype=BF16), t.randn(2, 5, 576, dtype=BF16)[..., :512]):
        w = t.randn(x.shape[-1])
        t.expect(ops.rms_norm(x, w, 1e-5), norm(x, w, 1e-5))

    t.atol, t.rtol = 1e-2, 1e-3
    x, residual = (t.randn(32, 1024, dtype=F16) for _ in range(2))
    w, bias = t.randn(1024), t.randn(1024)
    t.expect(ops.rms_norm(x, w, bias=bias), norm(x, w, bias=bias))
    total = f32(x) + f32(residual)
    t.expect(ops.add_rms_norm(x, residual, w), (norm(total, w), total))


def mamba(t: Bench) -> None:
    """mamba: layernorm_gated with is_rms_norm, with and without its gate."""
    t.atol, t.rtol = 8e-3, 1e-2
    for dim, after, size, biased in product([2048, 4096], [False, True], [0, 64], [False, True]):
        x, z = (t.randn(2, 3, dim, dtype=F16) for _ in range(2))
        w, bias, gate = t.randn(dim), t.randn(dim) if biased else None, F.silu(f32(z))
        parts, product_parts, v, b = in_groups(size, x, f32(x) * gate, w, bias)
        n = norm(parts, v, 1e-5, bias=b)
        t.expect(ops.rms_norm(parts, v, 1e-5, bias=b), n)
        n = n.flatten(-2) * gate if after else norm(product_parts, v, 1e-5, bias=b).flatten(-2)
        options = {"bias": bias, "norm_before_gate": after, "group_size": size}
        t.expect(ops.gated_rms_norm(x, z, w, 1e-5, **options), n)


def mlx(t: Bench) -> None:
    """MLX: mx.fast.rms_norm, which rounds before the weight as "llama" does, and fused_rms_silu."""
    llama = {"casting_mode": "llama"}
    tolerances = {F32: (1e-6, 1e-5), F16: (1e-3, 5e-3), BF16: (1e-2, 5e-2)}
    for dtype, (atol, atol_of_silu) in tolerances.items():
        for dim, eps in product([31, 32, 33, 256, 512, 4099], [1e-3, 1e-5]):
            x, weight = t.uniform(2, dim).to(dtype), t.uniform(dim).to(dtype)
            for w in (weight, None):
                expected = norm(x, w, eps, **llama).to(dtype)
                t.atol, t.rtol = atol, 0.0
                t.expect(ops.rms_norm(x, w, eps, **llama), expected)
                t.atol, t.rtol = atol_of_silu, 0.0
                t.expect(ops.rms_norm(x, w, eps, **llama, activation="silu"), F.silu(expected))


@torch.no_grad()
def pytorch(t: Bench) -> None:
    """PyTorch: the samples of OpInfo("nn.functional.rms_norm"), of the override by quack, too."""
    t.atol, t.rtol = None, None
    samples: list[tuple[tuple[int, ...], int, float | None]] = [
        ((1, 2, 3), 3, 0.5), ((2, 2, 3), 2, -0.5), ((1,), 1, None), ((1, 2), 1, None),
        ((0, 1), 1, None), ((8, 128), 1, 1e-5), ((4, 8, 32), 1, 1e-5), ((2, 16, 512), 1, 1e-5),
        ((4, 32, 1024), 1, 1e-5), ((2, 4, 8, 16), 2, 1e-5), ((8, 128), 1, None),
    ]  # fmt: skip
    for dtype, (shape, count, eps), affine in product(DTYPES, samples, [True, False]):
        x = t.uniform(*shape, low=-9, high=1000).to(dtype)
        layer = ops.RMSNorm(shape[-count:], eps, affine, t.device, dtype)
        if affine:
            layer.weight.copy_(t.uniform(*shape[-count:], low=-9, high=1000))
        weight = layer.weight.cpu() if affine else None
        expected = F.rms_norm(x.cpu(), shape[-count:], weight, eps)
        t.expect(layer(x), expected)
        t.expect(layer(x.repeat_interleave(2, -1)[..., ::2]), expected)


# ---- faults, which these tests are to tell ------------------------------------------------------


def without(option: str) -> Fault:
    return lambda op: lambda *a, **k: op(*a, **{name: k[name] for name in k if name != option})


def sum_is_not_written(op: Any) -> Any:
    return lambda x, r, w, out, **k: op(x, r, w, out=(out[0], torch.empty_like(r)), **k)


def eps_beside_the_root(op: Any) -> Any:
    """x / (rms + eps)."""
    rms = lambda x: f32(x).square().mean(-1, keepdim=True).sqrt()  # noqa: E731
    return lambda x, w, eps=1e-6, **k: op(x, w, 0.0, **k) / (1 + eps / rms(x))


def gate_on_the_other_side(op: Any) -> Any:
    return lambda *a, norm_before_gate, **k: op(*a, norm_before_gate=not norm_before_gate, **k)


PEERS: list[tuple[Peer, str, Fault]] = [
    (flashinfer, "add_rms_norm", sum_is_not_written),
    (vllm, "rms_norm", eps_beside_the_root),
    (liger, "rms_norm", without("weight_offset")),
    (quack, "rms_norm", without("bias")),
    (mamba, "gated_rms_norm", gate_on_the_other_side),
    (mlx, "rms_norm", eps_beside_the_root),
    (pytorch, "RMSNorm", lambda layer: partial(layer, weight_offset=1e-3)),
]
NAMES = [peer.__name__ for peer, _, _ in PEERS]
each_peer = pytest.mark.parametrize(("peer", "name", "fault"), PEERS, ids=NAMES)


@each_peer
def test_peer(device: str, peer: Peer, name: str, fault: Fault) -> None:
    peer(Bench(device))


@each_peer
def test_a_fault_is_told(monkeypatch: Any, peer: Peer, name: str, fault: Fault) -> None:
    monkeypatch.setattr(ops, name, fault(getattr(ops, name)))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        peer(Bench("cpu"))
