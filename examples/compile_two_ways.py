"""A model's own norms, found by torch.compile: op by op, and with Inductor."""

import torch
from torch import nn

import torch_mlxnorm.compile as mlxnorm_compile


class Norm(nn.Module):
    """As a model may write it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


class Model(nn.Module):
    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm(dim) for _ in range(3))
        self.mlps = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, mlp in zip(self.norms, self.mlps, strict=False):
            x = x + mlp(norm(x))
        return self.norms[-1](x)


torch.manual_seed(0)
model = Model().to(torch.bfloat16).requires_grad_(False)
x = torch.randn(8, 256, dtype=torch.bfloat16)
expected = model(x)
ways = {
    "backend": torch.compile(model, backend="mlxnorm"),
    "Inductor": torch.compile(model, options=mlxnorm_compile.inductor_options()),
}
for name, compiled in ways.items():
    report = mlxnorm_compile.report(compiled, x)
    print(f"{name}:\n{report}")
    assert report.norms == 3
    torch.testing.assert_close(compiled(x), expected, rtol=2e-2, atol=2e-2)
