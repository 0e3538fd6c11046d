"""What `import torch_mlxnorm` leaves for later, and that it is there when it is needed."""

from __future__ import annotations

import tempfile

import pytest
from beside import beside, run_programs
from forked import Program

PROGRAMS = {
    "no overload is made": """
import torch, torch_mlxnorm
x = torch.ones(8)
y = torch_mlxnorm.rms_norm(x, x)  # in C++
assert "rms_norm" not in vars(torch.ops.mlxnorm)
assert torch.equal(torch.ops.mlxnorm.rms_norm(x, x), y)
assert "rms_norm" in vars(torch.ops.mlxnorm) and "add_rms_norm" not in vars(torch.ops.mlxnorm)
""",
    "no module of few": """
import sys
import torch, torch_mlxnorm
few = ("torch.distributed.tensor", "torch.nested._internal.ops", "torch_mlxnorm.compile")
assert not {name for name in few if name in sys.modules}
""",
    # Rules for nested tensors are registered with the first call that one takes part in.
    "the first call of a nested tensor": """
import torch, torch_mlxnorm
from torch.nested._internal.nested_tensor import NestedTensor
values, weight = torch.randn(5, 8), torch.ones(8)
y = torch_mlxnorm.rms_norm(NestedTensor(values, offsets=torch.tensor([0, 2, 5])), weight)
assert torch.equal(y.values(), torch_mlxnorm.rms_norm(values, weight))
""",
    "the first call in vmap": """
import torch, torch_mlxnorm
x, weight = torch.randn(3, 5, 8), torch.ones(8)
y = torch.vmap(lambda row: torch_mlxnorm.rms_norm(row, weight))(x)
assert torch.equal(y, torch_mlxnorm.rms_norm(x, weight))
""",
    "the first call compiled": """
import torch, torch_mlxnorm
x, weight = torch.randn(5, 8), torch.ones(8)
norm = torch.compile(torch_mlxnorm.rms_norm, backend="eager", fullgraph=True)
assert torch.equal(norm(x, weight), torch_mlxnorm.rms_norm(x, weight))
""",
}


@beside
def imported() -> dict[str, str]:
    """What each program says of its error."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_programs([Program(code, folder=folder, path=[]) for code in PROGRAMS.values()])
    said = [run.stderr if run.returncode else "" for run in done]
    return dict(zip(PROGRAMS, said, strict=True))


@pytest.mark.parametrize("program", PROGRAMS)
def test_import(program: str, imported: dict[str, str]) -> None:
    assert imported[program] == ""
