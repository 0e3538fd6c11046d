"""torch.compile with backend "mlxnorm": the bits of models of transformers, and what it finds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tensors import type_id
from tiny_models import FAMILIES, model_of, norms_of, with_our_norms
from torch import Tensor, nn

import torch_mlxnorm.compile as compile_

pytest.importorskip("transformers", reason="needs the package transformers")

DTYPES = (torch.bfloat16, torch.float32)
IDS = torch.arange(2, 12).reshape(1, 10)
# Calls in two layers, in bfloat16.
CALLS: dict[str, dict[str, int]] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def logits(model: Any, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **{"use_cache": False} | kwargs).logits


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="mlxnorm", fullgraph=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_of_the_model_with_our_norms(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    ours = compiled(model)
    assert torch.equal(logits(ours), logits(with_our_norms(model)))
    with torch.no_grad():
        report = compile_.report(ours, input_ids=IDS, use_cache=False)
    assert report.norms == norms_of(family, layers=2)
    if dtype == torch.bfloat16:
        assert dict(report) == CALLS[family]
