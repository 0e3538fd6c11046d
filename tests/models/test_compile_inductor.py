"""Inductor's passes, what its caches keep, exported programs and the report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled import ops_of
from tensors import randn
from torch import Tensor, nn

import torch_mlxnorm
import torch_mlxnorm.compile as compile_

DIM, EPS = 32, 1e-6


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + randn(DIM) / 8)
        self.eps = EPS

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class Layers(nn.Module):
    """Two residual adds, each before a norm; a norm of PyTorch; norms of heads."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = Norm(), Norm()
        self.a, self.b = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.last = nn.RMSNorm(DIM, eps=EPS)
        self.to(dtype).eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.a(self.first(x))
        h = h + nn.functional.silu(self.b(self.second(h)))
        return self.last(h)


CALLS = {"add_rms_norm": 2, "rms_norm": 1}
WAYS: dict[str, dict[str, Any]] = {
    "backend": {"backend": "mlxnorm"},
    "inductor": {"options": compile_.inductor_options()},
}
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@each_way
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_results(way: str, dtype: torch.dtype) -> None:
    model, x = Layers(dtype), randn(3, 5, DIM, dtype=dtype)
    with torch.no_grad():
        ours = torch.compile(model, **WAYS[way])
        # Inductor's own steps between may round once where eager mode rounds twice.
        close = {"rtol": 2**-6, "atol": 2**-6} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(ours(x), model(x), **close)
        assert dict(compile_.report(ours, x)) == CALLS


def test_on_a_device(device: str) -> None:
    """No code is generated, so nothing is needed but the operators."""
    model, x = Layers(torch.bfloat16).to(device), randn(3, 5, DIM, dtype=torch.bfloat16).to(device)
    with torch.no_grad():
        ours = torch.compile(model, backend="mlxnorm")
        assert dict(compile_.report(ours, x)) == CALLS
        torch.testing.assert_close(ours(x), model(x), rtol=2**-6, atol=2**-6)


@each_way
def test_outputs_that_are_views(way: str) -> None:
    """Of a result that is contiguous where that of the model was not."""
    norm, x = Norm(), randn(3, 5, DIM)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = norm(x.transpose(0, 1))
        return y, y.transpose(0, 1)

    with torch.no_grad():
        y, view = torch.compile(function, **WAYS[way])(x)
        torch.testing.assert_close((y, view), function(x))


@each_way
def test_inference_mode(way: str) -> None:
    model, x = Layers(torch.float32), randn(3, 5, DIM)
    with torch.inference_mode():
        assert dict(compile_.report(torch.compile(model, **WAYS[way]), x)) == CALLS


@each_way
def test_a_graph_with_gradients_stays(way: str) -> None:
    model, x = Layers(torch.float32).requires_grad_(True), randn(3, 5, DIM)
    ours = torch.compile(model, **WAYS[way])
    assert compile_.report(ours, x).calls == 0
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    ours(x).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@each_way
def test_any_number_of_rows(way: str) -> None:
    model = Layers(torch.float32)
    with torch.no_grad():
        ours = torch.compile(model, **WAYS[way], dynamic=True)
        for rows in (5, 3, 8):
            x = randn(2, rows, DIM)
            torch.testing.assert_close(ours(x), model(x))
        assert dict(compile_.report(ours, x)) == CALLS


def test_a_report_of_what_comes_from_a_cache() -> None:
    """No pass is called then."""
    model, x = Layers(torch.bfloat16), randn(3, 5, DIM, dtype=torch.bfloat16)
    counters = torch._dynamo.utils.counters
    reports = []
    with torch._inductor.utils.fresh_inductor_cache(), torch.no_grad():
        for hits in (0, 1):
            torch._dynamo.reset()
            counters.clear()
            reports.append(compile_.report(torch.compile(model, **WAYS["inductor"]), x))
            assert counters["inductor"]["fxgraph_cache_hit"] == hits
    assert dict(reports[0]) == dict(reports[1]) == CALLS


def test_a_report_is_read_by_people_and_by_code() -> None:
    x, weight = randn(3, DIM), randn(DIM)
    report = compile_.report(lambda: torch_mlxnorm.rms_norm_triple(x, weight, None, weight))
    assert dict(report) == {"rms_norm_triple": 1}
    assert (report.calls, report.norms, report["rms_norm"]) == (1, 3, 0)
    assert str(report) == "     1  rms_norm_triple\n     1  calls, 3 norms"
    assert "add_rms_norm" not in report


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_programs(dtype: torch.dtype, dynamic: bool) -> None:
    model, x = Layers(dtype), randn(3, 5, DIM, dtype=dtype)
    shapes = ({1: torch.export.Dim("rows", min=2)},) if dynamic else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    before = program.graph_module.code
    ours = compile_.rewrite(program)
    assert program.graph_module.code == before
    assert ops_of(ours.graph_module) == CALLS
    with torch.no_grad():
        for rows in (5, 7) if dynamic else (5,):
            x = randn(3, rows, DIM, dtype=dtype)
            assert torch.equal(ours.module()(x), torch.compile(model, backend="mlxnorm")(x))


def test_an_exported_program_is_saved(tmp_path: Path) -> None:
    model, x = Layers(torch.float32), randn(3, 5, DIM)
    ours = compile_.rewrite(torch.export.export(model, (x,)))
    torch.export.save(ours, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert torch.equal(loaded.module()(x), ours.module()(x))
    assert dict(compile_.report(loaded.module(), x)) == CALLS


def test_errors() -> None:
    with pytest.raises(TypeError, match="program must be an ExportedProgram, got Linear"):
        compile_.rewrite(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(Exception, match='backend "mlxnorm" takes no options, got fast'):
        torch.compile(Layers(torch.float32), backend="mlxnorm", options={"fast": 1})(randn(1, DIM))


def test_the_package_imports_neither_dynamo_nor_inductor() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import torch_mlxnorm\n"
        "new = set(sys.modules) - before\n"
        "print([m for m in new if m.startswith(('torch._dynamo', 'torch._inductor'))])\n"
        "print(torch_mlxnorm.compile.report.__module__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["[]", "torch_mlxnorm.compile.reporting"]
