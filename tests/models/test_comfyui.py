"""ComfyUI's RMS norm by the operator, and the folder for custom_nodes. ComfyUI itself is imitated:
its function, its module, and the ways in which they call torch.nn.functional.rms_norm."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tensors import randn, type_id
from torch import Tensor, nn
from torch.nn import functional

from torch_mlxnorm.integrations import comfy
from torch_mlxnorm.integrations._launches import Launches
from torch_mlxnorm.integrations._probe import share_equal

FOLDER = Path(__file__).parents[2] / "comfyui"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LEAST = {torch.bfloat16: 0.9999, torch.float16: 0.999, torch.float32: 1.0}
DIM = 256
EPS = 1e-6


class CastWeights:
    """A mixin of ComfyUI's modules: weights of another dtype, or patched, when they are used."""

    comfy_cast_weights = False
    weight_function: list[Any] = []
    bias_function: list[Any] = []


def ops(events: list[str]) -> SimpleNamespace:
    """comfy.ops, which says what it was asked for."""

    def cast_bias_weight(module: Any, input: Tensor, offloadable: bool = False) -> Any:
        assert offloadable
        events.append("cast")
        weight = module.weight.to(device=input.device, dtype=input.dtype)
        for function in module.weight_function:
            weight = function(weight)
        return weight, None, "stream"

    def uncast_bias_weight(module: Any, weight: Tensor, bias: None, stream: str) -> None:
        assert stream == "stream"
        events.append("uncast")

    class RMSNorm(nn.RMSNorm, CastWeights):
        def reset_parameters(self) -> None:
            self.bias = None

        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            if self.weight is None:
                return functional.rms_norm(input, self.normalized_shape, None, self.eps)
            weight, bias, stream = here.cast_bias_weight(self, input, offloadable=True)
            result = functional.rms_norm(input, self.normalized_shape, weight, self.eps)
            here.uncast_bias_weight(self, weight, bias, stream)
            return result

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            here.run_every_op()
            if self.comfy_cast_weights or len(self.weight_function) > 0:
                return self.forward_comfy_cast_weights(*args, **kwargs)
            return super().forward(*args, **kwargs)

    class Casting(RMSNorm):
        comfy_cast_weights = True

    here = SimpleNamespace(
        cast_bias_weight=cast_bias_weight,
        uncast_bias_weight=uncast_bias_weight,
        run_every_op=lambda: events.append("op"),
        disable_weight_init=SimpleNamespace(RMSNorm=RMSNorm),
        manual_cast=SimpleNamespace(RMSNorm=Casting),
    )
    return here


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    shape = x.shape[-1:] if weight is None else weight.shape
    if weight is not None:
        weight = weight.to(device=x.device, dtype=x.dtype)
    return functional.rms_norm(x, shape, weight, eps)


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch, events: list[str]) -> Iterator[SimpleNamespace]:
    """Modules named as ComfyUI's, one of which has imported the function by name."""

    def cast_to(weight: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        return weight.to(device=device, dtype=dtype)

    contents = {
        "comfy": {},
        "comfy.model_management": {"cast_to": cast_to},
        "comfy.rmsnorm": {"rms_norm": rms_norm},
        "comfy.ops": vars(ops(events)),
        "comfy.ldm.common_dit": {"rms_norm": rms_norm},
    }
    made = {}
    for name, content in contents.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(content)
        monkeypatch.setitem(sys.modules, name, made[name])
    yield SimpleNamespace(
        rmsnorm=made["comfy.rmsnorm"], ops=made["comfy.ops"], dit=made["comfy.ldm.common_dit"]
    )
    comfy.restore_rms_norm()
    if "comfy_kitchen" in sys.modules:
        comfy.unregister()


def norm_of(modules: SimpleNamespace, casts: bool = False, **options: Any) -> Any:
    home = modules.ops.manual_cast if casts else modules.ops.disable_weight_init
    norm = home.RMSNorm(DIM, eps=EPS, **options)
    if norm.weight is not None:
        norm.weight = nn.Parameter(randn(DIM, seed=1) + 1, requires_grad=False)
    return norm


def calls_of_operator(function: Any, *arguments: Any) -> int:
    with Launches() as counted:
        function(*arguments)
    return sum(n for name, n in counted.counts.items() if name.startswith("mlxnorm::"))


@pytest.mark.mps
@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_function(modules: SimpleNamespace, dtype: torch.dtype, device: str) -> None:
    x, weight = randn(2, 300, DIM, dtype=dtype), randn(DIM, seed=1)
    report = comfy.reroute_rms_norm()
    assert report.replaced == ["comfy.rmsnorm.rms_norm", "comfy.ops.disable_weight_init.RMSNorm"]
    for home in (modules.rmsnorm, modules.dit):
        for w in (weight, weight.to(dtype), None):
            expected = rms_norm(x, w, 1e-5)
            result = home.rms_norm(x.to(device), w, eps=1e-5)
            assert share_equal(result.cpu(), expected) >= LEAST[dtype]
        assert calls_of_operator(home.rms_norm, x.to(device), weight) == 1


@pytest.mark.mps
@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_module(
    modules: SimpleNamespace, events: list[str], dtype: torch.dtype, casts: bool, device: str
) -> None:
    norm = norm_of(modules, casts)
    if not casts:
        norm.to(dtype)
    x = randn(2, 300, DIM, dtype=dtype)
    expected = norm(x)
    if not casts:
        norm.to(device)
    before = events.copy()
    events.clear()
    comfy.reroute_rms_norm()
    events.clear()
    assert share_equal(norm(x.to(device)).cpu(), expected) >= LEAST[dtype]
    assert events == before == (["op", "cast", "uncast"] if casts else ["op"])
    assert calls_of_operator(norm, x.to(device)) == 1


def test_patched_weights(modules: SimpleNamespace) -> None:
    """A weight that a LoRA changes for a call."""
    norm, x = norm_of(modules), randn(3, DIM)
    norm.weight_function = [lambda weight: weight * 2]
    expected = norm(x)
    comfy.reroute_rms_norm()
    assert share_equal(norm(x), expected) == 1
    assert calls_of_operator(norm, x) == 1


def test_without_a_weight(modules: SimpleNamespace) -> None:
    comfy.reroute_rms_norm()
    for casts in (False, True):
        norm, x = norm_of(modules, casts, elementwise_affine=False), randn(3, DIM)
        assert share_equal(norm(x), functional.rms_norm(x, (DIM,), eps=EPS)) == 1
        assert calls_of_operator(norm, x) == 1


def test_strides_are_kept(modules: SimpleNamespace) -> None:
    """Models view the results as what they were."""
    comfy.reroute_rms_norm()
    x = randn(2, 5, 3, DIM).transpose(1, 2)
    assert modules.rmsnorm.rms_norm(x).stride() == x.stride()
    assert modules.rmsnorm.rms_norm(x).transpose(1, 2).view(2, 5, 3 * DIM).shape == (2, 5, 3 * DIM)


def test_own_code_where_the_operator_does_not_fit(modules: SimpleNamespace) -> None:
    comfy.reroute_rms_norm()
    ours, norm = modules.rmsnorm.rms_norm, norm_of(modules)
    x, weight = randn(4, DIM), randn(DIM)

    class Quantized(Tensor):
        pass

    for each in (x.double(), x.as_subclass(Quantized), x.t(), x[:, :0]):
        assert calls_of_operator(ours, each) == 0
    assert calls_of_operator(ours, x, randn(4, DIM)) == 0  # over two dimensions
    assert calls_of_operator(norm, x.as_subclass(Quantized)) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert calls_of_operator(ours, x) == 0
    assert calls_of_operator(ours, x, weight) == 1


def test_gradients(modules: SimpleNamespace) -> None:
    """LoRAs are trained inside ComfyUI."""
    comfy.reroute_rms_norm()
    x, weight = randn(4, DIM).requires_grad_(), randn(DIM).requires_grad_()
    modules.rmsnorm.rms_norm(x, weight.detach()).sum().backward()
    modules.rmsnorm.rms_norm(x.detach(), weight).sum().backward()
    norm = norm_of(modules)
    norm.weight.requires_grad_()
    norm(x.detach()).sum().backward()
    assert x.grad is not None and weight.grad is not None and norm.weight.grad is not None


def test_another_rounding_is_left_alone(modules: SimpleNamespace) -> None:
    def before_the_weight(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
        y = functional.rms_norm(x, x.shape[-1:], eps=eps)
        return y if weight is None else y * weight.to(x.dtype)

    modules.rmsnorm.rms_norm = before_the_weight
    report = comfy.reroute_rms_norm()
    assert modules.rmsnorm.rms_norm is before_the_weight
    assert report.replaced == ["comfy.ops.disable_weight_init.RMSNorm"]
    assert "the operator does not give its results" in str(report)


@pytest.mark.parametrize("missing", ["uncast_bias_weight", "disable_weight_init"])
def test_another_comfyui_is_left_alone(modules: SimpleNamespace, missing: str) -> None:
    cls = modules.ops.disable_weight_init.RMSNorm
    methods = dict(vars(cls))
    delattr(modules.ops, missing)
    report = comfy.reroute_rms_norm()
    assert report.left_alone == ["comfy.ops.disable_weight_init.RMSNorm"]
    assert dict(vars(cls)) == methods


def test_outside_comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "comfy"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert comfy.reroute_rms_norm().replaced == []


def test_restore(modules: SimpleNamespace) -> None:
    cls = modules.ops.disable_weight_init.RMSNorm
    methods = dict(vars(cls))
    comfy.reroute_rms_norm()
    report = comfy.reroute_rms_norm()
    assert len(report.replaced) == 2 and modules.dit.rms_norm is not rms_norm
    report.restore()
    assert modules.rmsnorm.rms_norm is rms_norm and modules.dit.rms_norm is rms_norm
    assert dict(vars(cls)) == methods
    comfy.restore_rms_norm()


def test_what_another_node_put_there_since_stays(modules: SimpleNamespace) -> None:
    comfy.reroute_rms_norm()
    theirs = modules.rmsnorm.rms_norm = lambda x, weight=None, eps=1e-6: x
    comfy.restore_rms_norm()
    assert modules.rmsnorm.rms_norm is theirs and modules.dit.rms_norm is rms_norm


def load_node() -> ModuleType:
    """As ComfyUI does."""
    spec = importlib.util.spec_from_file_location(
        "custom_nodes.torch_mlxnorm", FOLDER / "__init__.py"
    )
    assert spec is not None and spec.loader is not None
    node = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(node)
    return node


def test_node(modules: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("comfy_kitchen", reason="pip install comfy-kitchen")
    with caplog.at_level(logging.INFO):
        node = load_node()
    assert node.NODE_CLASS_MAPPINGS == {} == node.NODE_DISPLAY_NAME_MAPPINGS
    (line,) = caplog.messages
    assert "functions of comfy-kitchen" in line and "comfy.rmsnorm.rms_norm" in line
    assert modules.rmsnorm.rms_norm is not rms_norm


def test_node_without_comfy_kitchen(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise ImportError("comfy-kitchen is not installed")

    monkeypatch.setattr(comfy, "register", missing)
    load_node()
    (line,) = caplog.messages
    assert line == "torch_mlxnorm is not used: comfy-kitchen is not installed"
    assert modules.rmsnorm.rms_norm is rms_norm
