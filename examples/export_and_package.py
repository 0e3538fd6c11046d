"""An exported program with the operators in it, packaged by AOTInductor and loaded again."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import torch_mlxnorm.compile as mlxnorm_compile

torch.manual_seed(0)
model = nn.Sequential(nn.RMSNorm(256), nn.Linear(256, 256), nn.RMSNorm(256)).requires_grad_(False)
x = torch.randn(8, 256)

program = mlxnorm_compile.rewrite(torch.export.export(model, (x,)))
targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
assert targets.count("mlxnorm.rms_norm.default") == 2, targets
torch.testing.assert_close(program.module()(x), model(x))

with tempfile.TemporaryDirectory() as folder:
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(Path(folder) / "model.pt2")
    )
    packaged = torch._inductor.aoti_load_package(path)
    torch.testing.assert_close(packaged(x), model(x))
print("2 norms in the program; the package gives the model's results")
