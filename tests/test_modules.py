"""torch_mlxnorm.RMSNorm."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_same_bits

from torch_mlxnorm import RMSNorm, rms_norm


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


def test_rejects_more_than_one_dimension() -> None:
    with pytest.raises(ValueError, match="normalized_shape must have 1 dimension"):
        RMSNorm((4, 8))
