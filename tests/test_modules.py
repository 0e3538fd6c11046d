"""torch_mlxnorm.RMSNorm."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from oracle import assert_same_bits

from torch_mlxnorm import RMSNorm, rms_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("eps", [None, 1e-5])
@torch.no_grad()
def test_stands_in_for_torch_rms_norm(device: str, eps: float | None, dtype: torch.dtype) -> None:
    theirs = torch.nn.RMSNorm(96, eps=eps, dtype=dtype)
    torch.nn.init.normal_(theirs.weight)
    ours = RMSNorm(96, eps=eps, dtype=dtype, device=device)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = 1e-2 * torch.randn(5, 96).to(dtype)
    step = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    torch.testing.assert_close(ours(x.to(device)).cpu(), theirs(x), rtol=step, atol=1e-6)


@torch.no_grad()
def test_options(device: str) -> None:
    x = torch.randn(3, 32, dtype=torch.bfloat16).to(device)
    plain = RMSNorm([32], 1e-6, elementwise_affine=False)
    assert plain.weight is None and not plain.state_dict()
    assert_same_bits(plain(x), rms_norm(x, None, 1e-6))

    offset = RMSNorm(32, 1e-6, weight_offset=1.0, casting_mode="llama", device=device)
    assert offset.weight is not None and offset.weight.eq(0.0).all()
    offset.weight.normal_()
    expected = rms_norm(x, offset.weight, weight_offset=1.0, casting_mode="llama")
    assert_same_bits(offset(x), expected)
    assert "weight_offset=1.0, casting_mode='llama'" in repr(offset)


def test_a_model_moves_and_compiles() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), RMSNorm(32, 1e-6)).to(torch.bfloat16)
    x = torch.randn(4, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same_bits(compiled(x), model(x))
    with pytest.raises(NotImplementedError, match="inference only"):
        model(x).sum().backward()


SHAPES = [8, np.int64(8), [8], (8,), torch.Size([8]), [np.int32(8)]]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_shapes(shape: Any) -> None:
    theirs, ours = torch.nn.RMSNorm(shape), RMSNorm(shape)
    assert ours.normalized_shape == theirs.normalized_shape == (8,)
    assert type(ours.normalized_shape[0]) is int
    assert ours.weight is not None and torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("shape", [8.0, "8", [8.0], None])
def test_no_shapes(shape: Any) -> None:
    for module in (torch.nn.RMSNorm, RMSNorm):
        with pytest.raises(TypeError):
            module(shape)


MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "eps": {"eps": 1e-3},
    "no weight": {"elementwise_affine": False},
    "options": {"weight_offset": 1, "casting_mode": "llama", "dtype": torch.bfloat16},
}


@pytest.mark.parametrize("kind", MODULES)
@torch.no_grad()
def test_script_trace_fx_export_copy_and_pickle(device: str, kind: str) -> None:
    module = RMSNorm(8, **MODULES[kind], device=device)
    if module.weight is not None:
        module.weight.normal_()
    x = torch.randn(3, 8, dtype=torch.bfloat16).to(device)
    others = {
        "script": torch.jit.script(module),
        "trace": torch.jit.trace(module, (x,)),
        "fx": torch.fx.symbolic_trace(module),
        "deepcopy": copy.deepcopy(module),
    }
    if device == "cpu":  # PyTorch writes no tensors of the simulated device
        file = io.BytesIO()
        torch.jit.save(others["script"], file)
        file.seek(0)
        others["saved script"] = torch.jit.load(file)
        others["pickle"] = pickle.loads(pickle.dumps(module))
        others["export"] = torch.export.export(module, (x,)).module()
    for other in others.values():
        assert_same_bits(other(x), module(x))
    more = torch.randn(2, 5, 8, dtype=torch.bfloat16).to(device)
    assert_same_bits(others["script"](more), module(more))
    module.reset_parameters()
    if module.weight is not None:
        assert (module.weight + module.weight_offset).eq(1).all()


@torch.no_grad()
def test_a_weight_that_is_elsewhere(device: str) -> None:
    """Under a parametrization, given for one call, or no parameter any more."""
    x, weight = torch.randn(3, 8, device=device), torch.randn(8, device=device)
    expected = rms_norm(x, 2 * weight)

    class Twice(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    parametrized = RMSNorm(8, 1e-6, device=device)
    parametrized.weight.copy_(weight)
    torch.nn.utils.parametrize.register_parametrization(parametrized, "weight", Twice())
    plain = RMSNorm(8, 1e-6, device=device)
    called = torch.func.functional_call(plain, {"weight": 2 * weight}, (x,))
    del plain.weight
    plain.weight = 2 * weight
    for result in (parametrized(x), called, plain(x)):
        assert_same_bits(result, expected)


def test_script_in_a_model() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), RMSNorm(32), RMSNorm(32, 1e-6))
    x = torch.randn(4, 16)
    with torch.no_grad():
        assert_same_bits(torch.jit.script(model)(x), model(x))
    with pytest.raises(NotImplementedError, match="inference only"):
        model(x).sum().backward()


def test_refuses_another_size(device: str) -> None:
    """As torch.nn.RMSNorm, with a weight or without."""
    x = torch.ones(2, 9, device=device)
    for module in (RMSNorm(8, device=device), RMSNorm(8, elementwise_affine=False)):
        for run in (module, torch.jit.script(module), torch.fx.symbolic_trace(module)):
            errors = (RuntimeError, torch.jit.Error)
            with pytest.raises(errors, match="must have (a )?last dim"):
                run(x)
        with pytest.raises(RuntimeError, match="x must have at least 1 dimension"):
            module(x[0, 0])
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="aot_eager", dynamic=True)
        with pytest.raises(Exception, match="must have (a )?last dim"):
            compiled(x)
        assert compiled(x[:, :8]).shape == (2, 8)


def test_rejects_no_dimension() -> None:
    with pytest.raises(ValueError, match="normalized_shape must have at least 1 dimension"):
        RMSNorm(())


@pytest.mark.parametrize("affine", [True, False], ids=["weight", "no weight"])
@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 8), (1, 8)], ids=str)
@torch.no_grad()
def test_several_dimensions(device: str, shape: tuple[int, ...], affine: bool) -> None:
    """As torch.nn.RMSNorm; they may lie apart."""
    theirs = torch.nn.RMSNorm(shape, eps=1e-6, elementwise_affine=affine)
    ours = RMSNorm(shape, eps=1e-6, elementwise_affine=affine, device=device)
    if affine:
        torch.nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    apart = torch.randn(8, 5, *reversed(shape[:-1])).permute(
        1, *reversed(range(2, 1 + len(shape))), 0
    )
    for x in (torch.randn(4, 5, *shape), torch.randn(shape), apart):
        there = x.to(device)
        result = ours(there)
        assert result.shape == x.shape and result.is_contiguous()
        torch.testing.assert_close(result.cpu(), theirs(x), rtol=1e-6, atol=1e-6)
        others = (torch.jit.script(ours), torch.jit.trace(ours, (there,)))
        for other in (*others, torch.fx.symbolic_trace(ours)):
            assert_same_bits(other(there), result)
    for wrong in (torch.ones(2, *shape[:-1], 9), torch.ones(9, shape[-1]), torch.ones(())):
        with pytest.raises(RuntimeError, match=r"RMSNorm: x must have last dimensions of \["):
            ours(wrong.to(device))


@torch.no_grad()
def test_several_dimensions_compile() -> None:
    module = RMSNorm((3, 8))
    x = torch.randn(4, 3, 8)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    assert_same_bits(compiled(x), module(x))
    exported = torch.export.export(module, (x,)).module()
    assert_same_bits(exported(x), module(x))


@pytest.mark.parametrize("shape", [(64,), (4, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_with_a_residual(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    module = RMSNorm(shape, eps=1e-5, casting_mode="llama", dtype=dtype).to(device)
    x, residual = (torch.randn(3, *shape, dtype=dtype).to(device) for _ in range(2))
    out, total = module(x, residual)
    assert_same_bits(total, x + residual)
    assert_same_bits(out, module(x + residual))


def test_errors_of_a_residual() -> None:
    module = RMSNorm(64)
    with pytest.raises(
        RuntimeError, match=r"residual must have x's shape \[3, 64\], got \[1, 64\]"
    ):
        module(torch.ones(3, 64), torch.ones(1, 64))
    with pytest.raises(RuntimeError, match="last dimensions"):
        module(torch.ones(3, 32), torch.ones(3, 32))


def test_graph_of_a_model_with_a_residual() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = RMSNorm(64)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            out, total = self.norm(x, y)
            return out * total

    model, x, y = Model(), torch.randn(3, 64), torch.randn(3, 64)
    with torch.no_grad():
        assert_same_bits(torch.compile(model, backend="eager", fullgraph=True)(x, y), model(x, y))
