"""torch_mlxnorm.integrations.kernels: layers for Hugging Face's kernels."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="pip install transformers")
kernels = pytest.importorskip("kernels", reason="pip install kernels")

from tiny_models import build, logits, tokens, with_norms  # noqa: E402

from torch_mlxnorm.integrations import kernels as ours  # noqa: E402


def kernelized(model: torch.nn.Module) -> torch.nn.Module:
    with kernels.use_kernel_mapping(ours.mapping(), inherit_mapping=False):
        return kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu")


@pytest.mark.parametrize("name, count", [("llama", 5), ("olmo2", 9), ("qwen3_next", 1)])
def test_layers_of_either_cast_order(name: str, count: int) -> None:
    """Those of a model that its code marks as layers."""
    model, ids = build(name), tokens(2, 8)
    expected = logits(with_norms(model), ids)
    model = kernelized(model)
    assert torch.equal(logits(model, ids), expected)
    assert sum(ours.FOUND in vars(module) for module in model.modules()) == count


def test_what_nothing_fits_runs_its_own_code() -> None:
    @kernels.use_kernel_forward_from_hub("RMSNorm")
    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x / x.abs().mean(-1, keepdim=True)

    model, x = torch.nn.Sequential(Other()), torch.randn(3, 64)
    expected = model(x)
    assert torch.equal(kernelized(model)(x), expected)


def test_a_version_that_transformers_ignores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: False)
    with pytest.raises(ImportError, match="would silently run without its layers"):
        ours.register()
