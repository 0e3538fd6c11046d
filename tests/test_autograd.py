"""Inference only: a gradient is refused, never lost."""

from __future__ import annotations

import pytest
import torch
from ops import Op, each_op


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
