"""Inference only: a gradient is refused, never lost."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from ops import Call, Op, assert_all_same_bits, each_op, function_of
from tensors import randn
from torch import Tensor

from torch_mlxnorm import RMSNorm, RmsNormRecord


@each_op
def test_backward_raises(where: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float32, where)
    assert not any(result.requires_grad for result in call())
    text = f"mlxnorm::{op.name}: inference only, it has no backward"
    for name in call.tensors:
        needed = call.mapped(lambda t: t.clone().requires_grad_(), [name])
        for i in range(len(op.results)):
            result = needed()[i]
            assert result.requires_grad
            with pytest.raises(NotImplementedError, match=text):
                result.sum().backward()
        with torch.no_grad():
            assert not any(result.requires_grad for result in needed())
        with torch.inference_mode():
            assert all(result.is_inference() for result in needed())


@each_op
def test_out_does_not_lose_a_gradient(where: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float32, where)
    text = f"mlxnorm::{op.name}: out= does not support automatic differentiation"

    def assert_refused(call: object, outs: list[torch.Tensor]) -> None:
        with pytest.raises(RuntimeError, match=text):
            call(out=outs)
        with torch.no_grad():
            call(out=outs)

    for name in call.tensors:
        needed = call.mapped(lambda t: t.clone().requires_grad_(), [name])
        assert_refused(needed, list(call.empty_outs()))
    for i in range(len(op.results)):
        outs = list(call.empty_outs())
        outs[i].requires_grad_()
        assert_refused(call, outs)


@each_op
def test_out_of_inference_mode(where: str, op: Op) -> None:
    """Its tensors count no versions."""
    with torch.inference_mode():
        call = op.call((2,), 8, torch.float32, where)
        outs = call.empty_outs()
        assert all(a is b for a, b in zip(call(out=outs), outs, strict=True))


# ---- versions: a tensor that autograd has saved is not overwritten unnoticed --------------------


def saved_for_a_backward(shape: torch.Size, device: str) -> tuple[Tensor, Tensor]:
    """What to call backward on, and the memory of what was saved for that."""
    a = randn(*shape, device=device).requires_grad_()
    b = a * 2
    return (b * b).sum(), b.detach()


@each_op
def test_out_bumps_versions(device: str, op: Op) -> None:
    """In inference mode as well: a backward that needs what was overwritten raises."""
    call = op.call((2,), 8, torch.float32, device)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        for i in range(len(op.results)):
            loss, buffer = saved_for_a_backward(call.shape, device)
            outs = list(call.empty_outs())
            outs[i] = buffer
            versions = [out._version for out in outs]
            with mode():
                call(out=outs)
            assert [out._version for out in outs] == [version + 1 for version in versions]
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


def test_record_bumps_versions(device: str) -> None:
    record = RmsNormRecord(torch.float32, 2, 8, has_weight=False, device=device)
    loss, buffer = saved_for_a_backward(torch.Size([2, 8]), device)
    with torch.inference_mode():
        record(buffer, None, buffer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_op
def test_an_inference_tensor_is_no_out_elsewhere(where: str, op: Op) -> None:
    """As PyTorch's own ops have it; nothing is written before that is said."""
    call = op.call((2,), 8, torch.float32, where)
    for i, name in enumerate(op.results):
        outs = list(call.empty_outs())
        with torch.inference_mode():
            outs[i] = torch.full(call.shape, 7.0, device=where)
        for mode in (torch.no_grad, torch.enable_grad):
            text = f"mlxnorm::{op.name}: {name} is an inference tensor"
            with mode(), pytest.raises(RuntimeError, match=text):
                call(out=outs)
        if where != "meta":
            assert outs[i].eq(7.0).all()
        with torch.inference_mode():
            call(out=outs)


def test_record_refuses_an_inference_tensor_elsewhere(device: str) -> None:
    record = RmsNormRecord(torch.float32, 2, 8, has_weight=False, device=device)
    x = randn(2, 8, device=device)
    with torch.inference_mode():
        out = torch.empty(2, 8, device=device)
        record(x, None, out)
    with pytest.raises(RuntimeError, match="out is an inference tensor"):
        record(x, None, out)


# ---- tangents and torch.func ---------------------------------------------------------------------


@each_op
def test_a_tangent_is_refused(where: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float32, where)
    outs = call.empty_outs()
    for name in op.tensors:
        text = f"mlxnorm::{op.name}: inference only, it has no forward-mode .* but {name} has"

        def refused(dual: Call, text: str = text) -> None:
            for grad_mode in (torch.enable_grad, torch.no_grad):
                with grad_mode(), pytest.raises(NotImplementedError, match=text):
                    dual()
                with grad_mode(), pytest.raises(NotImplementedError, match=text):
                    dual(out=outs)

        with forward_ad.dual_level():
            refused(call.mapped(lambda t: forward_ad.make_dual(t, torch.ones_like(t)), [name]))
            call()  # without one nothing is lost

        def function(tensor: Tensor, name: str = name) -> tuple[Tensor, ...]:
            return call.having(**{name: tensor})()

        x = call[name]
        with pytest.raises(NotImplementedError, match=text):
            torch.func.jvp(function, (x,), (torch.ones_like(x),))
        if where != "meta":
            with pytest.raises(NotImplementedError, match=text):
                torch.func.jacfwd(function)(x)
    assert not any(result.requires_grad for result in call())


def test_record_refuses_a_tangent(device: str) -> None:
    record = RmsNormRecord(torch.float32, 2, 8, device=device)
    tensors = [randn(2, 8, device=device), randn(8, device=device), randn(2, 8, device=device)]
    with forward_ad.dual_level(), torch.no_grad():
        for i in range(len(tensors)):
            dual = forward_ad.make_dual(tensors[i], torch.ones_like(tensors[i]))
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                record(*tensors[:i], dual, *tensors[i + 1 :])
        record(*tensors)


@each_op
def test_functional_gradients_say_so(device: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float32, device)
    text = f"mlxnorm::{op.name}: inference only, it has no backward"
    for name in op.tensors:

        def total(tensor: Tensor, name: str = name) -> Tensor:
            return sum(r.sum() for r in call.having(**{name: tensor})())

        for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
            with pytest.raises(NotImplementedError, match=f"mlxnorm::{op.name}: inference only"):
                transform(total)(call[name])
        _, pull = torch.func.vjp(total, call[name])  # the values are there
        with pytest.raises(NotImplementedError, match=text):
            pull(torch.ones((), device=device))


# ---- torch.compile with gradients enabled --------------------------------------------------------


@each_op
def test_compiled_only_a_real_backward_raises(device: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float32, device)
    needed = call.mapped(lambda t: t.clone().requires_grad_())

    function = function_of(call)

    def model(tensors: dict[str, Tensor | None]) -> list[Tensor]:
        return [result * 2 for result in function(tensors)]

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    results = compiled(needed.tensors)
    assert_all_same_bits(results, model(call.tensors))
    with pytest.raises(NotImplementedError, match=f"mlxnorm::{op.name}: inference only"):
        results[0].sum().backward()


def test_compiled_module_runs_with_gradients_enabled() -> None:
    norm, x = RMSNorm(8), torch.randn(4, 8)
    torch._dynamo.reset()
    y = torch.compile(norm, fullgraph=True)(x)
    assert y.requires_grad
    assert_all_same_bits([y.detach()], [norm(x).detach()])
    with pytest.raises(NotImplementedError, match="mlxnorm::rms_norm: inference only"):
        y.sum().backward()
