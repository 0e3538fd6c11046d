"""torch_mlxnorm.integrations.diffusers, on small models of random weights."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers", reason="pip install diffusers")

from tiny_image_models import MODELS  # noqa: E402

from torch_mlxnorm.bench.image_models import MODELS as PUBLISHED  # noqa: E402
from torch_mlxnorm.bench.image_models import Size  # noqa: E402
from torch_mlxnorm.count import bytes_of_step  # noqa: E402
from torch_mlxnorm.integrations import _swap  # noqa: E402
from torch_mlxnorm.integrations._blocks import blocks_of  # noqa: E402
from torch_mlxnorm.integrations._norms import Norms  # noqa: E402
from torch_mlxnorm.integrations.diffusers import accelerate, restore  # noqa: E402

# What each kind of block calls, the first of the model first.
CALLS = {
    "Z-Image": [
        "rms_norm_modulate, qk_norm_rope, rms_norm_add_rms_norm, rms_norm_add",
        "qk_norm_rope, rms_norm_add_rms_norm, rms_norm_add",
    ],
    "Lumina 2": [
        "rms_norm_modulate, qk_norm_rope, rms_norm_add_rms_norm, rms_norm_add",
        "qk_norm_rope, rms_norm_add_rms_norm, rms_norm_add",
    ],
    "LTX": ["rms_norm_modulate, qk_norm_rope, add_rms_norm"],
}


def made(name: str, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch._dynamo.reset()
    return MODELS[name].make(dtype, device)


def with_norms(model: nn.Module) -> nn.Module:
    """With its norms replaced, and nothing else."""
    model = copy.deepcopy(model)
    assert any(entry.op for entry in Norms(model).replace())
    return model


def share(a: Tensor, b: Tensor) -> float:
    return (a == b).float().mean().item()


def blocks(report: Any) -> list[Any]:
    return [entry for entry in report.entries if not entry.class_name.endswith("Norm")]


def units(a: Tensor, b: Tensor) -> float:
    """The largest difference, in units of the last place of the largest element."""
    a, b = a.float(), b.float()
    return ((a - b).abs().max() / (b.abs().max() * 2**-8)).item()


@pytest.mark.parametrize("name", MODELS)
def test_fused_blocks_have_the_bits_of_their_norms(name: str) -> None:
    """The blocks one by one, and then a whole step."""
    model, step = made(name), MODELS[name].step
    norms = with_norms(model)
    report = accelerate(model)
    found = step(model)
    assert units(found, step(norms)) <= 2 * len(blocks(report))
    assert len(blocks(report)) >= 2
    for entry in blocks(report):
        assert entry.op is not None and entry.equal >= 0.9999, str(report)
    assert {e.op for e in blocks(report)} == set(CALLS.get(name, ["qk_norm_rope"]))
    assert torch.equal(step(model), found)  # compiled, and not compared again


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
) -> Tensor:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(-1) @ value


@pytest.fixture
def attention_on_mps(mps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated device has neither PyTorch's attention nor its convolutions."""
    if sys.platform != "darwin":
        functional, conv3d = torch.nn.functional, torch.nn.functional.conv3d
        monkeypatch.setattr(functional, "scaled_dot_product_attention", plain_attention)

        def on_the_cpu(x: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
            return conv3d(x.cpu(), weight.cpu(), bias.cpu(), *options).to(x.device)

        monkeypatch.setattr(functional, "conv3d", on_the_cpu)


@pytest.mark.usefixtures("attention_on_mps")
@pytest.mark.parametrize("name", ["Z-Image", "Flux 1", "Wan 2.1 14B"])
def test_on_mps(name: str, mps: str) -> None:
    model, step = made(name, "mps"), MODELS[name].step
    norms = with_norms(model)
    report = accelerate(model, step=lambda: step(model))
    assert all(entry.op and entry.equal >= 0.9999 for entry in blocks(report)), str(report)
    assert units(step(model), step(norms)) <= 2 * len(blocks(report))


def test_other_sizes() -> None:
    """Of images and text, in one model; PyTorch compiles once more for them."""
    model = made("Qwen-Image")
    norms = with_norms(model)
    report = accelerate(model)
    for size in (Size(1, 4, 6, 9, 2), Size(1, 6, 5, 7, 2)):
        step = MODELS["Qwen-Image"].step
        assert units(step(model, size), step(norms, size)) <= 8
    assert all(entry.op for entry in blocks(report))


def test_report_and_restore() -> None:
    model, step = made("Z-Image"), MODELS["Z-Image"].step
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    tensors = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    before = step(model)
    report = accelerate(model)
    assert {entry.op for entry in blocks(report)} == {None}
    assert "layers.0 and 1 more (ZImageTransformerBlock): left alone" in str(report)
    step(model)
    (entry,) = (e for e in report.entries if e.path == "layers.0")
    assert (entry.launches_before, entry.launches_after) == (14, 6), str(report)
    (norm,) = (e for e in report.entries if e.path == "layers.0.attention.norm_q")
    assert norm.op == "rms_norm(casting_mode='llama')" and norm.launches_after == 0
    (last,) = report.left_alone
    assert last.class_name == "LayerNorm" and last.reason == "it takes the mean off"
    assert json.loads(json.dumps(report.as_dict()))["launches_after"] == report.launches_after
    assert not accelerate(model).replaced  # nothing is left to be done
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == tensors
    report.restore()
    assert torch.equal(step(model), before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


def test_a_pipeline() -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    config = transformers.Qwen3Config(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, head_dim=16,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    encoder = transformers.Qwen3Model(config).to(torch.bfloat16).eval()
    model = made("Flux 1")
    parts = {"scheduler": object(), "text_encoder": encoder, "transformer": model}
    pipeline = SimpleNamespace(components=parts)
    report = accelerate(pipeline, step=lambda: MODELS["Flux 1"].step(model))
    ops = {entry.path: entry.op for entry in report.entries}
    assert ops["transformer.single_transformer_blocks.1"] == "qk_norm_rope"
    assert "add_rms_norm" in ops["text_encoder.layers.0"]
    restore(pipeline)
    assert not any(_swap.is_swapped(m) for part in (encoder, model) for m in part.modules())
    with pytest.raises(TypeError, match="expected a module, or a pipeline .*, got int"):
        accelerate(3)


class Block(nn.Module):
    """Not of diffusers: anything with norms in a list will do."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.norm, self.kind = nn.RMSNorm(64, eps=1e-6), kind

    def forward(self, x: Tensor, scale: Tensor, seen: list[int] | None = None) -> Tensor:
        if self.kind == "changes its input":
            x += 1
        if self.kind == "plain":
            return self.norm(x)
        if self.kind == "fills a list" and seen is not None:
            seen[0] += 1
        if self.kind == "random":
            scale = torch.rand_like(scale)
        return x + self.norm(x) * (1 + scale)


def of_blocks(kind: str = "") -> nn.Module:
    model = nn.Module()
    model.blocks = nn.ModuleList([Block(kind), Block(kind)])
    return model.to(torch.bfloat16).requires_grad_(False).eval()


def through(model: nn.Module, x: Tensor) -> Tensor:
    seen = [0]
    with torch.no_grad():
        for block in model.blocks:
            x = block(x, torch.full((64,), 0.375, dtype=x.dtype), seen)
    assert seen[0] == sum(block.kind == "fills a list" for block in model.blocks)
    return x


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("plain", "nothing in it can be fused"),
        ("changes its input", "its code changes its inputs"),
        ("fills a list", "its code changes its inputs"),
        ("random", "compiled it would differ"),
    ],
)
def test_blocks_that_stay(kind: str, reason: str) -> None:
    torch._dynamo.reset()
    model, x = of_blocks(kind), torch.randn(8, 64).bfloat16()
    expected = through(with_norms(model), x.clone())
    report = accelerate(model)
    result = through(model, x.clone())
    assert kind == "random" or torch.equal(result, expected)
    assert all(entry.reason.startswith(reason) for entry in blocks(report)), str(report)
    assert len(blocks(report)) == 2


def test_a_block_that_differs_later_stays_from_then_on() -> None:
    """Another graph of the same code is compared as well, and all blocks of a kind go together."""
    torch._dynamo.reset()
    model, x = of_blocks(), torch.randn(8, 64).bfloat16()
    report = accelerate(model)
    through(model, x)
    assert [entry.op for entry in blocks(report)] == ["rms_norm_add"] * 2
    for block in model.blocks:
        block.kind = "random"
    through(model, x)
    assert all("compiled it would differ" in entry.reason for entry in blocks(report)), str(report)
    assert all(e.launches_after == 1 for e in report.entries if e.path.endswith("norm"))


def test_a_block_with_a_forward_of_its_own_stays() -> None:
    model = of_blocks()
    model.blocks[1].forward = lambda x, scale: x
    first, second = blocks(accelerate(model))
    assert "is not a method" in second.reason and "when it is first called" in first.reason
    assert [path for path, _ in blocks_of(model)] == ["blocks.0", "blocks.1"]


def test_gradients_autocast_and_compile_are_the_models_own() -> None:
    torch._dynamo.reset()
    model, x = of_blocks(), torch.randn(8, 64).bfloat16()
    norms = with_norms(model)
    report = accelerate(model)
    weights = [parameter.requires_grad_() for parameter in model.parameters()]
    model.blocks[0](x, x[0]).sum().backward()
    assert weights[0].grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.blocks[0](x, x[0])
    compiled = torch.compile(model.blocks[0], backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x, x[0]), norms.blocks[0](x, x[0]))
    assert all("when it is first called" in entry.reason for entry in blocks(report))
    for parameter in weights:
        parameter.requires_grad_(False)
    through(model, x)
    assert [entry.op for entry in blocks(report)] == ["rms_norm_add"] * 2


def test_a_wrong_call_raises_what_the_model_raises() -> None:
    torch._dynamo.reset()
    model = of_blocks()
    report = accelerate(model)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'scale'"):
        with torch.no_grad():
            model.blocks[0](torch.randn(8, 64).bfloat16())
    through(model, torch.randn(8, 64).bfloat16())
    assert [entry.op for entry in blocks(report)] == ["rms_norm_add"] * 2


# ---- bytes ---------------------------------------------------------------------------------------


def test_bytes_of_a_chain() -> None:
    """8 rows of 64 in bfloat16 are 1024 bytes, a scale 128. Matrices and what is between them and
    the activation are not counted."""
    model, x = of_blocks(), torch.randn(8, 64).bfloat16()
    scale = torch.full((64,), 0.375, dtype=x.dtype)
    linear = nn.Linear(64, 64).to(torch.bfloat16).requires_grad_(False)

    def step() -> Tensor:
        y = model.blocks[0](linear(x), scale)
        return torch.nn.functional.silu(linear(y)) * linear(y)

    found = bytes_of_step(model, step)
    # Products read and write rows, the sum reads two, 1 + scale reads and writes a scale.
    norm, around = 1024 + 128 + 1024, (1024 + 128 + 1024) + (2 * 1024 + 1024)
    assert sum(found.with_own_norm.values()) == norm + around + 2 * 128
    assert found.after == {"mlxnorm::rms_norm_add": 3 * 1024 + 2 * 128, "aten::add": 2 * 128}
    assert sum(found.before.values()) == norm + around + 2 * 128 + found_in_float32()


def found_in_float32() -> int:
    """What the norm taken apart moves beyond one that is a kernel: in bytes for 8 rows of 64."""
    rows, single, one_each = 1024, 2048, 8 * 4
    kernels = [
        rows + single,  # to float32
        single + single,  # squares
        single + one_each,  # mean
        one_each + one_each,  # + eps
        one_each + one_each,  # the inverse root
        single + one_each + single,
        single + 128 + single,  # weight
        single + rows,  # rounded
    ]
    return sum(kernels) - (rows + 128 + rows)


@pytest.mark.parametrize("name", ["Z-Image", "Flux 1", "Qwen-Image", "Wan 2.1 14B", "LTX"])
def test_bytes_of_published_models(name: str) -> None:
    """Some layers of them: all are alike. On MPS Wan's norms of the text's keys, and of queries
    beside them, have no rotation: 3.95."""
    torch._dynamo.reset()
    layers = {"n_layers": 8} if name == "Z-Image" else {"num_layers": 8}
    layers |= {"num_single_layers": 16} if name == "Flux 1" else {}
    model = dataclasses.replace(PUBLISHED[name], settings=layers).make(torch.bfloat16, "meta")
    found = bytes_of_step(model, lambda: PUBLISHED[name].step(model))
    own, mps, after = (
        sum(kernels.values()) for kernels in (found.before, found.with_own_norm, found.after)
    )
    assert own >= 4 * after and mps >= (3.9 if name == "Wan 2.1 14B" else 4) * after, str(found)
