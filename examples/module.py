"""torch_mlxnorm.RMSNorm in the place of torch.nn.RMSNorm, and of vLLM's with a residual."""

import torch

import torch_mlxnorm

theirs = torch.nn.RMSNorm(128, eps=1e-5)
ours = torch_mlxnorm.RMSNorm(128, eps=1e-5)
ours.load_state_dict(theirs.state_dict())

x, residual = torch.randn(2, 8, 128)
with torch.inference_mode():
    torch.testing.assert_close(ours(x), theirs(x))
    out, total = ours(x, residual)
    assert torch.equal(total, x + residual) and torch.equal(out, ours(total))
print("equal to torch.nn.RMSNorm; with a residual the sum and its norm in one launch")
