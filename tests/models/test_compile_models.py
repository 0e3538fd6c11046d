"""torch.compile with backend "mlxnorm": the bits of models of transformers, and what it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensors import type_id
from torch import Tensor, nn

import torch_mlxnorm.compile as compile_

pytest.importorskip("transformers", reason="transformers is not installed")

from tiny_models import build, count_norms, tokens, with_norms  # noqa: E402

DTYPES = (torch.bfloat16, torch.float32)
IDS = tokens(1, 10)
# Calls in two layers, in bfloat16.
CALLS: dict[str, dict[str, int]] = {
    "llama": {"add_rms_norm": 4, "rms_norm": 1},
    "qwen3": {"add_rms_norm": 4, "qk_norm_rope": 2, "rms_norm": 1},
    "olmo2": {"rms_norm_add": 3, "qk_norm_rope": 2, "rms_norm_add_rms_norm": 1},
    "gemma3": {"rms_norm_add_rms_norm": 4, "qk_norm_rope": 2, "rms_norm": 1},
    "gemma4_dense": {"rms_norm_add_rms_norm": 4, "qkv_norm_rope": 2, "rms_norm": 1},
    "gemma4_moe": {
        "rms_norm": 5,
        "qkv_norm_rope": 2,
        "fused_post_attn_triple_norm": 2,
        "fused_moe_wsum_post_ff_norm2_endlayer": 2,
    },
    "gemma4_ple": {
        "rms_norm_add_rms_norm": 4,
        "rms_norm_add": 3,
        "qkv_norm_rope": 2,
        "rms_norm": 1,
    },
}


each_family = pytest.mark.parametrize("family", CALLS)


def model_of(family: str, dtype: torch.dtype, layers: int = 2) -> nn.Module:
    return build(family, dtype, layers=layers).requires_grad_(False)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def logits(model: Any, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **{"use_cache": False} | kwargs).logits


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="mlxnorm", fullgraph=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@each_family
def test_bits_of_the_model_with_norms(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    ours = compiled(model)
    assert torch.equal(logits(ours), logits(with_norms(model)))
    with torch.no_grad():
        report = compile_.report(ours, input_ids=IDS, use_cache=False)
    assert report.norms == count_norms(model)
    if dtype == torch.bfloat16:
        assert dict(report) == CALLS[family]


@each_family
def test_inductor_finds_the_same(family: str) -> None:
    """Its own steps between are in float32, whatever the model's dtype: results are compared where
    that is no other rounding."""
    options = compile_.inductor_options()
    model = model_of(family, torch.bfloat16)
    for use_cache in (False, True):
        ours = torch.compile(model, options=options)
        with torch.no_grad():
            report = compile_.report(ours, input_ids=IDS, use_cache=use_cache)
        assert dict(report) == CALLS[family]
    model = model_of(family, torch.float32)
    found = logits(torch.compile(model, options=options))
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "layers", "count"),
    [
        ("llama", 3, 7),
        ("qwen3", 3, 13),
        ("olmo2", 3, 13),
        ("gemma3", 3, 19),
        ("gemma4_dense", 6, 43),
        ("gemma4_moe", 6, 67),
        ("gemma4_ple", 6, 50),
    ],
)
def test_every_norm_is_found(family: str, layers: int, count: int) -> None:
    model = model_of(family, torch.bfloat16, layers)
    assert count_norms(model) == count
    with torch.no_grad():
        report = compile_.report(compiled(model), input_ids=IDS, use_cache=False)
    assert report.norms == count


def test_decoding() -> None:
    """One token after another, beside a cache that grows; the number of tokens is a symbol."""
    model = model_of("gemma3", torch.bfloat16, layers=1)
    theirs, ours = with_norms(model), torch.compile(model, backend="mlxnorm", dynamic=True)
    caches: list[Any] = [None, None]
    for ids in IDS[:, :6].split([3, 1, 1, 1], dim=1):
        results = []
        for i, each in enumerate((theirs, ours)):
            with torch.no_grad():
                result = each(input_ids=ids, past_key_values=caches[i], use_cache=True)
            caches[i] = result.past_key_values
            results.append(result.logits)
        assert torch.equal(*results)
    with torch.no_grad():
        assert compile_.report(ours, input_ids=IDS).norms == count_norms(model)


def test_any_number_of_tokens() -> None:
    model = model_of("gemma4_dense", torch.bfloat16, layers=1)
    ours, theirs = compiled(model), with_norms(model)
    for length in (10, 7):
        ids = IDS[:, :length].clone()
        torch._dynamo.mark_dynamic(ids, 1)
        assert torch.equal(logits(ours, ids), logits(theirs, ids))


def test_a_training_graph_stays() -> None:
    """Loss and gradients are those of the model."""
    model = model_of("gemma3", torch.float32, layers=1).requires_grad_(True)

    def loss(model: Any) -> Tensor:
        model.zero_grad()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    parameters = list(model.parameters())
    ours = compiled(model)
    report = compile_.report(ours, input_ids=IDS, use_cache=False)
    assert report.calls == 0
    torch.testing.assert_close(loss(ours), loss(model), rtol=1e-4, atol=1e-6)
