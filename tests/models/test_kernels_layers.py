"""torch_mlxnorm.integrations.kernels: layers for Hugging Face's kernels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="pip install transformers")
kernels = pytest.importorskip("kernels", reason="pip install kernels")

from tiny_models import build, logits, tokens, with_norms  # noqa: E402

from torch_mlxnorm.integrations import kernels as ours  # noqa: E402

ROOT = Path(__file__).parents[2]
NAMES = ("RMSNorm", "RMSNormZeroCentered", "RMSNormGated")


def kernelized(model: torch.nn.Module, mapping: dict[str, Any] | None = None) -> torch.nn.Module:
    with kernels.use_kernel_mapping(mapping or ours.mapping(), inherit_mapping=False):
        return kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu")


@pytest.mark.parametrize("name, count", [("llama", 5), ("olmo2", 9), ("qwen3_next", 1)])
def test_layers_of_either_cast_order(name: str, count: int) -> None:
    """Those of a model that its code marks as layers."""
    model, ids = build(name), tokens(2, 8)
    expected = logits(with_norms(model), ids)
    model = kernelized(model)
    assert torch.equal(logits(model, ids), expected)
    assert sum(ours.FOUND in vars(module) for module in model.modules()) == count


def build_kernel(folder: Path) -> None:
    """As the kernel builder does it for one without code to compile: a variant for each backend of
    build.toml, with the files of torch-ext and a description."""
    from kernels._rust import Build

    text = (ROOT / "build.toml").read_text()
    (name,) = (line.split('"')[1] for line in text.splitlines() if line.startswith("name ="))
    backends = [str(backend) for backend in Build.open(ROOT).general.backends]
    assert backends == ["cpu", "metal"]
    for backend in backends:
        variant = shutil.copytree(ROOT / "torch-ext" / name, folder / "build" / f"torch-{backend}")
        metadata = {"name": name, "id": f"_{name}_{backend}", "version": 1, "license": "MIT"}
        metadata |= {"backend": {"type": backend}, "python-depends": []}
        (variant / "metadata.json").write_text(json.dumps(metadata))


def test_the_repository_as_a_kernel(tmp_path: Path) -> None:
    build_kernel(tmp_path)
    mapping = {
        name: {
            "cpu": {kernels.Mode.INFERENCE: kernels.LocalLayerRepository(tmp_path, layer_name=name)}
        }
        for name in NAMES
    }
    model, ids = build("llama"), tokens(2, 8)
    expected = logits(with_norms(model), ids)
    model = kernelized(model, mapping)
    assert torch.equal(logits(model, ids), expected)
    assert sum(ours.FOUND in vars(module) for module in model.modules()) == 5


def test_every_layer_is_mapped() -> None:
    mapping = ours.mapping()
    assert tuple(mapping) == NAMES and all(set(mapping[name]) == {"mps", "cpu"} for name in NAMES)


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
