"""A layer of Llama's kind: sums and norms by the operators, with the bits of one after another."""

import torch
import torch.nn.functional as F

import torch_mlxnorm

device = "mps" if torch.backends.mps.is_available() else "cpu"
dim, dtype, eps = 256, torch.bfloat16, 1e-6
torch.manual_seed(0)
attention, mlp = (torch.randn(dim, dim, dtype=dtype, device=device) / 16 for _ in range(2))
weights = torch.randn(3, dim, dtype=dtype, device=device)
hidden = torch.randn(4, dim, dtype=dtype, device=device)


def one_by_one(h: torch.Tensor) -> torch.Tensor:
    h = h + torch_mlxnorm.rms_norm(h, weights[0], eps) @ attention
    h = h + F.silu(torch_mlxnorm.rms_norm(h, weights[1], eps) @ mlp)
    return torch_mlxnorm.rms_norm(h, weights[2], eps)


def fused(h: torch.Tensor) -> torch.Tensor:
    n = torch_mlxnorm.rms_norm(h, weights[0], eps)
    n, h = torch_mlxnorm.add_rms_norm(n @ attention, h, weights[1], eps, round_intermediates=True)
    n, h = torch_mlxnorm.add_rms_norm(F.silu(n @ mlp), h, weights[2], eps, round_intermediates=True)
    return n


with torch.inference_mode():
    assert torch.equal(fused(hidden), one_by_one(hidden))
print(f"on {device}: 3 launches instead of 5, equal bits")
