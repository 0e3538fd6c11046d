"""The same norm in every step of a decode loop, past PyTorch's dispatcher."""

import torch

import torch_mlxnorm

dim, steps, dtype = 512, 64, torch.bfloat16
device = "mps" if torch.backends.mps.is_available() else "cpu"
record = torch_mlxnorm.RmsNormRecord(dtype, 1, dim, device=device, eps=1e-6)
weight = torch.randn(dim, dtype=dtype, device=device)
matrix = torch.randn(dim, dim, dtype=dtype, device=device) / 16
hidden = torch.randn(1, dim, dtype=dtype, device=device)
normed = torch.empty_like(hidden)

with torch.inference_mode():
    for _ in range(steps):
        record(hidden, weight, out=normed)
        assert torch.equal(normed, torch_mlxnorm.rms_norm(hidden, weight, 1e-6))
        hidden = hidden + normed @ matrix
print(f"{steps} steps on {device}, each with the bits of torch_mlxnorm.rms_norm")
