"""torch_mlxnorm.integrations.transformers, on small models of random weights."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="pip install transformers")

import norm_classes  # noqa: E402
from tiny_models import FAMILIES, build, greedy, logits, tokens, with_norms  # noqa: E402

from torch_mlxnorm.integrations import _swap  # noqa: E402
from torch_mlxnorm.integrations._norms import Norms  # noqa: E402
from torch_mlxnorm.integrations.transformers import accelerate, restore  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16]


def share(a: Tensor, b: Tensor) -> float:
    return (a == b).float().mean().item()


@torch.no_grad()
def first_layer(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids, output_hidden_states=True).hidden_states[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_fused_layers_have_the_bits_of_their_norms(name: str, dtype: torch.dtype) -> None:
    """One of experts adds them in one order, the model's code in another."""
    experts = FAMILIES[name].experts
    for seed in range(3):
        model = build(name, dtype, seed)
        norms = with_norms(model)
        report = accelerate(model)
        assert not report.left_alone, str(report)
        for ids in (tokens(4, 32, seed=seed), tokens(1, 1, seed=seed)):
            assert share(first_layer(model, ids), first_layer(norms, ids)) >= 0.9999
            assert experts or torch.equal(logits(model, ids), logits(norms, ids))


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_stay(name: str) -> None:
    model = build(name)
    ids = tokens(2, 8)
    before = greedy(model, ids, 32)
    accelerate(model)
    assert greedy(model, ids, 32) == before


@pytest.mark.parametrize("name", ["gemma4_moe", "qwen3", "llama"])
def test_on_mps(name: str, mps: str) -> None:
    model = build(name)
    ids = tokens(2, 8)
    model = model.to("mps")
    norms = with_norms(model)
    before = greedy(model, ids, 32)
    accelerate(model)
    assert share(logits(model, ids), logits(norms, ids)) >= 0.9999
    assert greedy(model, ids, 32) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_launches_of_a_layer(name: str) -> None:
    report = accelerate(build(name))
    first = [entry for entry in report.replaced if ".layers.0" in entry.path]
    # Its first norm is worked out by the layer before, but for the first layer's own.
    second = [entry for entry in report.replaced if ".layers.1" in entry.path]
    before = sum(entry.launches_before for entry in first)
    after = sum(e.launches_after for e in first)
    joined = sum(e.launches_after for e in second) < after
    assert (before, after - joined) == FAMILIES[name].launches, str(report)


def test_report() -> None:
    model = build("qwen3")
    report = accelerate(model)
    text = str(report)
    assert "model.layers.0.self_attn.q_norm and 1 more (Qwen3RMSNorm)" in text
    assert "qk_norm_rope" in text and f"{report.launches_before} -> {report.launches_after}" in text
    (entry,) = (entry for entry in report.entries if entry.path == "model.norm")
    assert entry.op == "rms_norm(casting_mode='llama')" and entry.equal >= 0.999
    assert json.loads(json.dumps(report.as_dict()))["launches_after"] == report.launches_after
    assert accelerate(model).entries == []  # nothing is left to be done


def test_restore() -> None:
    model = build("gemma4_moe")
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    tensors = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    ids = tokens(2, 8)
    before = logits(model, ids)
    report = accelerate(model)
    assert _swap.is_swapped(model.model.norm)
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == tensors
    report.restore()
    assert torch.equal(logits(model, ids), before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    restore(model)


def test_copies_and_other_dtypes() -> None:
    model = build("qwen3")
    accelerate(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    ids = tokens(2, 8)
    expected = logits(build("qwen3"), ids)
    assert (logits(other, ids) - expected).abs().max() < 0.05  # its own weights
    half = build("qwen3").to(torch.float16)
    assert torch.equal(logits(other.to(torch.float16), ids), logits(with_norms(half), ids))


def test_gradients_are_the_models_own() -> None:
    model, ids = build("qwen3", torch.float32), tokens(2, 8)
    model(ids).logits.sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    accelerate(model)
    model(ids).logits.sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 20
    assert all(map(torch.equal, found, expected))


def test_autocast_is_the_models_own() -> None:
    model, ids = build("llama", torch.float32), tokens(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        before = logits(model, ids)
        accelerate(model)
        after = logits(model, ids)
    assert (after - before).abs().max() < 0.05


def test_compiled_model() -> None:
    model, ids = build("llama"), tokens(2, 8)
    norms = with_norms(model)
    accelerate(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(logits(norms, ids), compiled(ids).logits.detach())


def test_a_sum_that_is_changed_between_layers() -> None:
    model, ids = build("qwen3"), tokens(2, 8)
    norms = with_norms(model)
    accelerate(model)
    with torch.inference_mode():  # versions are not counted there
        usual = model(ids).logits.clone()
    assert torch.equal(usual, logits(norms, ids))
    for changed in (model, norms):
        changed.model.layers[0].register_forward_hook(lambda m, i, o: o.mul_(0.5))
    assert torch.equal(logits(model, ids), logits(norms, ids))
    assert not torch.equal(logits(model, ids), usual)
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, norms(ids).logits)


def test_a_rotation_that_is_missed_is_an_error() -> None:
    model, ids = build("qwen3"), tokens(2, 8)
    attention = model.model.layers[0].self_attn
    own = type(attention).forward
    accelerate(model)
    swapped = attention.forward.__func__
    with pytest.raises(RuntimeError, match="did not rotate what it had normalized"):
        # As if the code rotated only sometimes.
        cells = dict(zip(swapped.__code__.co_freevars, swapped.__closure__, strict=True))
        cells["run"].cell_contents = lambda self, *a, **k: (self.q_norm(torch.ones(1, 4, 16)), None)
        logits(model, ids)
    restore(model)
    assert attention.forward.__func__ is own


@torch.no_grad()
def run(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids).logits


@pytest.mark.parametrize("offloaded_first", [True, False])
def test_offloaded_weights(offloaded_first: bool) -> None:
    accelerate_hooks = pytest.importorskip("accelerate", reason="pip install accelerate")
    model, ids = build("qwen3"), tokens(2, 8)
    own, expected = run(model, ids), run(with_norms(model), ids)
    device = torch.device("cpu")
    if offloaded_first:
        accelerate_hooks.cpu_offload(model, device)
    report = accelerate(model)
    if not offloaded_first:
        accelerate_hooks.cpu_offload(model, device)
    reasons = {entry.reason for entry in report.left_alone}
    if offloaded_first:
        assert "the weight of input_layernorm is offloaded" in reasons
    assert len(report.replaced) >= 9
    assert model.model.norm.weight.device.type == "meta"
    assert torch.equal(run(model, ids), expected)
    report.restore()
    assert torch.equal(run(model, ids), own)


def test_device_map() -> None:
    accelerate_hooks = pytest.importorskip("accelerate", reason="pip install accelerate")
    model, ids = build("qwen3"), tokens(2, 8)
    expected = run(with_norms(model), ids)
    accelerate_hooks.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert not accelerate(model).left_alone
    assert torch.equal(run(model, ids), expected)


@pytest.mark.parametrize("adapted_first", [True, False])
def test_adapters(adapted_first: bool) -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    results = []
    for replace in (lambda model: list(Norms(model).replace()), accelerate):
        model, ids = build("qwen3"), tokens(2, 8)
        if not adapted_first:
            replace(model)
        config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, config)
        if adapted_first:
            replace(adapted)
        results.append(run(adapted, ids))
    assert torch.equal(*results)
    assert not torch.equal(results[0], run(with_norms(build("qwen3")), ids))


def test_quantised_matrices() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao")
    model, ids = build("qwen3"), tokens(2, 8)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    expected = run(with_norms(model), ids)
    assert not accelerate(model).left_alone
    assert torch.equal(run(model, ids), expected)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.RMSNorm(64, eps=1e-6), nn.Linear(64, 64)

    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        return self.again(x + self.mlp(self.norm(x)))

    def again(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class InPlace(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        residual = x
        residual += self.mlp(self.norm(x))
        return self.again(residual)


class AsksForAValue(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        return x if flag else super().forward(x)


class AsksForNone(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        return x if mask is None else self.again(x + self.mlp(self.norm(x)))


class AsksForAType(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        return self.again(x[0] if isinstance(x, tuple) else x)


class SetsAnAttribute(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        self.last = self.mlp(self.norm(x))
        return self.again(x + self.last)


class LooksIntoKwargs(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, **kwargs: object) -> Tensor:
        if kwargs.get("flag"):
            return x
        return self.again(x + self.mlp(self.norm(x)))


def model_of(layer: type[Layer]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.ModuleList([layer(), layer()])).requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize(
    "layer, reason",
    [
        (InPlace, "it changes x in place"),
        (AsksForAValue, "its code asks for values"),
        (AsksForAType, "its code asks for the type of x"),
        (SetsAnAttribute, "its code sets attributes"),
        (LooksIntoKwargs, "its code looks into kwargs"),
    ],
)
def test_layers_that_are_refused(layer: type[Layer], reason: str) -> None:
    model, x = model_of(layer), torch.randn(3, 64)
    flags = (False,) if layer is InPlace else (False, True)
    expected = [model[0][0](x.clone(), flag=flag) for flag in flags]
    report = accelerate(model)
    assert len(report.left_alone) == 2
    for entry in report.left_alone:
        assert entry.reason.startswith(reason)
    for flag, result in zip(flags, expected, strict=True):
        assert torch.allclose(model[0][0](x.clone(), flag=flag), result, atol=1e-5)


class AsksAChild(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        y = self.mlp(self.norm(x))
        return self.again(x + (y[0] if isinstance(y, tuple) else y))


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return super().forward(x), None


@torch.no_grad()
@pytest.mark.parametrize("pair", [False, True])
def test_a_child_whose_type_is_asked_for_is_tried(pair: bool) -> None:
    class Asks(AsksAChild):
        def again(self, x: Tensor) -> Tensor:
            y = self.mlp(self.norm(x))
            return x + (y[0] if isinstance(y, tuple) else y)

    model, x = model_of(Asks), torch.randn(3, 64)
    for layer in model[0]:
        layer.mlp = Pair(64, 64) if pair else nn.Linear(64, 64)
    model.requires_grad_(False)
    expected = model[0][0](x)
    report = accelerate(model)
    assert len(report.left_alone) == (2 if pair else 0), str(report)
    assert torch.allclose(model[0][0](x), expected, atol=1e-5)


@torch.no_grad()
def test_an_argument_that_may_be_missing_is_a_guard() -> None:
    model = model_of(AsksForNone)
    x, mask = torch.randn(3, 64), torch.ones(1)
    expected = model[0][0](x), model[0][0](x, mask)
    assert not accelerate(model).left_alone
    assert torch.equal(model[0][0](x), expected[0])
    assert torch.allclose(model[0][0](x, mask=mask), expected[1], atol=1e-5)
    assert not torch.allclose(*expected, atol=1e-3)


def test_hooks_of_norms_are_called() -> None:
    model = build("llama")
    seen = []
    model.model.layers[0].post_attention_layernorm.register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape)
    )
    report = accelerate(model)
    assert [e.reason for e in report.left_alone] == ["post_attention_layernorm has hooks"]
    logits(model, tokens(1, 4))
    assert len(seen) == 1


def test_what_is_no_rms_norm_stays() -> None:
    class Scaled(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind, self.eps = kind, 1e-6
            self.weight = nn.Parameter(torch.ones(64))

        def forward(self, x: Tensor) -> Tensor:
            if self.kind == "mean":
                x = x - x.mean(-1, keepdim=True)
            y = x.float()
            if self.kind == "eps outside":
                y = y / (y.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)
            elif self.kind == "other axis":
                y = y * torch.rsqrt(y.pow(2).mean(0, keepdim=True) + self.eps)
            else:
                y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
            return (y * self.weight).to(x.dtype)

    kinds = ["mean", "eps outside", "other axis", "norm"]
    model = nn.ModuleDict({kind: Scaled(kind) for kind in kinds}).to(torch.bfloat16)
    model["layer"] = nn.LayerNorm(64)
    model["scale"] = nn.Linear(64, 64)
    report = accelerate(model)
    assert [entry.path for entry in report.replaced] == ["norm"]


@pytest.mark.parametrize("after", [False, True])
def test_a_gated_norm_without_a_weight(after: bool) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eps, self.limit = 1e-6, float("inf")

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            y, g = x.float(), nn.functional.silu(gate.float())
            y = y if after else y * g
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
            return (y * g if after else y).to(x.dtype)

    model = nn.ModuleList([Gated()])
    (entry,) = accelerate(model).replaced
    assert entry.op is not None and entry.op.startswith("gated_rms_norm(")
    assert ("norm_before_gate=True" in entry.op) is after


def test_a_float32_weight_beside_16_bits() -> None:
    """The result would be float32: left alone, but not where the weight is cast."""

    class Norm(nn.Module):
        def __init__(self, cast: bool) -> None:
            super().__init__()
            self.cast, self.eps = cast, 1e-6
            self.weight = nn.Parameter(torch.ones(64, dtype=torch.float32))

        def forward(self, x: Tensor) -> Tensor:
            y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
            return (y * self.weight).to(x.dtype) if self.cast else self.weight * y.to(x.dtype)

    class Layer(nn.Module):
        def __init__(self, cast: bool) -> None:
            super().__init__()
            self.norm, self.linear = Norm(cast), nn.Linear(64, 64, dtype=torch.bfloat16)

    report = accelerate(nn.ModuleList([Layer(False), Layer(True)]))
    entries = {entry.path: entry for entry in report.entries}
    assert entries["0.norm"].reason == "of bfloat16 input it gives float32"
    assert entries["1.norm"].op == "rms_norm()"


@pytest.fixture(scope="module")
def surveyed() -> dict[type[nn.Module], list[object]]:
    found: dict[type[nn.Module], list[object]] = {}
    for dtype in DTYPES:
        for cls, entry in norm_classes.survey(dtype):
            found.setdefault(cls, []).append(entry)
    return found


def test_norm_classes_of_transformers(surveyed: dict[type[nn.Module], list[object]]) -> None:
    replaced = {
        cls: entries
        for cls, entries in surveyed.items()
        if all(getattr(entry, "op", None) for entry in entries)
    }
    # Of 5.22.2; releases before have fewer.
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    assert len(replaced) >= (205 if release >= (5, 22) else 120)
    for cls, (bf16, f16) in replaced.items():
        assert bf16.op == f16.op, cls
        assert bf16.equal >= 0.9999 and f16.equal >= 0.999, cls
    names = {cls.__name__ for cls in replaced}
    assert {"CohereLayerNorm", "Cohere2LayerNorm", "OlmoLayerNorm"}.isdisjoint(names)
    for cls, entries in surveyed.items():
        if cls not in replaced:
            assert all(getattr(entry, "reason", entry) or entry is None for entry in entries), cls
