"""torch_mlxnorm.integrations.comfy: the operators as a backend of comfy-kitchen."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from inspect import signature
from typing import Any

import pytest
import torch
from compiled import ops_of
from tensors import randn, type_id
from torch import Tensor

ck = pytest.importorskip("comfy_kitchen", reason="pip install comfy-kitchen")

from comfy_kitchen.backends import eager  # noqa: E402
from comfy_kitchen.exceptions import BackendNotFoundError  # noqa: E402

from torch_mlxnorm.integrations import comfy  # noqa: E402
from torch_mlxnorm.integrations._probe import share_equal  # noqa: E402

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (BF16, F16, F32)
LEAST = {BF16: 0.9999, F16: 0.999, F32: 1.0}
ROPES = ("rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1")
ALL_ROPES = tuple(name + place for name in ROPES for place in ("", "_"))
B, N, H, D = 2, 64, 8, 128

# Shapes and strides of q from [B, N, H, D]; k has half the heads.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "BNHD": lambda t: t,
    "BHND": lambda t: t.transpose(1, 2).contiguous(),
    "BHND, of BNHD": lambda t: t.transpose(1, 2),
    "slice of a packed projection": lambda t: torch.cat((t, t, t), 2)[:, :, : t.shape[2]],
}


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[comfy.Report]:
    report = comfy.register()
    yield report
    report.restore()


@pytest.fixture
def registered_anew() -> Iterator[None]:
    """After a test that changes what is registered; named before `monkeypatch`."""
    yield
    comfy.register()


def is_pair(name: str) -> bool:
    return not name.rstrip("_").endswith("1")


def rope_arguments(
    name: str, dtype: torch.dtype, table: torch.dtype, layout: str = "BNHD", rotated: int = D
) -> dict[str, Any]:
    """Matrices that need not be rotations, as comfy-kitchen's own tests have them."""
    q, k = (LAYOUTS[layout](randn(B, N, h, D, dtype=dtype, seed=h)) for h in (H, H // 2))
    freqs = randn(1, N, 1, rotated // 2, 2, 2, dtype=table, seed=1)
    if layout.startswith("BHND"):
        freqs = freqs.transpose(1, 2)
    scales = randn(2, D, seed=2) + 1
    if not is_pair(name):
        return {"x": q, "freqs_cis": freqs, "scale": scales[0]}
    pair = {"q": q, "k": k, "freqs_cis": freqs, "q_scale": scales[0], "k_scale": scales[1]}
    return pair | ({} if rotated == D else {"rot_dim": rotated})


def adaln_arguments(dtype: torch.dtype, modulation: torch.dtype | None = None) -> dict[str, Any]:
    scale, shift = randn(2, B, 1, 768, dtype=modulation or dtype, seed=1)
    return {"x": randn(B, N, 768, dtype=dtype), "scale": scale, "shift": shift, "eps": 1e-6}


def sum_arguments(dtype: torch.dtype, gate: torch.dtype | None = None) -> dict[str, Any]:
    activation, residual = randn(2, B, N, 768, dtype=dtype)
    weight, gates = randn(2, 768, dtype=gate or dtype, seed=1)
    arguments = {"activation": activation, "norm_weight": weight, "residual": residual}
    return arguments | {"gate": gates, "eps": 1e-5}


def copied(arguments: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """With the strides that they have."""

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        whole = value.as_strided((storage.nbytes() // value.element_size(),), (1,), 0).clone()
        return whole.to(device).as_strided(value.shape, value.stride(), value.storage_offset())

    return {name: copy(value) for name, value in arguments.items()}


def chosen(name: str, arguments: dict[str, Any]) -> str:
    return ck.registry.get_capable_backend(name, arguments)


def call(name: str, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """By the public function, of the backend that is chosen."""
    results = getattr(ck, name)(**arguments)
    return results if isinstance(results, tuple) else (results,)


def expected_of(name: str, arguments: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """The eager backend's results on the CPU, and the terms that they are sums of."""
    function = getattr(eager, name)
    positive = {n: v.abs() if isinstance(v, Tensor) else v for n, v in arguments.items()}
    pairs = (function(**copied(arguments)), function(**positive))
    each = ((p if isinstance(p, tuple) else (p,)) for p in pairs)
    return list(zip(*each, strict=True))


def assert_eager_bits(name: str, arguments: dict[str, Any], device: str, ours: bool = True) -> None:
    expected = expected_of(name, arguments)
    arguments = copied(arguments, device)
    rounded_to = next(iter(arguments.values())).dtype  # what comes before a float32 sum as well
    assert chosen(name, arguments) == ("mlxnorm" if ours else "eager")
    if not ours and device != "cpu":
        return  # PyTorch's own kernels there
    for result, (theirs, terms) in zip(call(name, arguments), expected, strict=True):
        assert result.device.type == device
        share = share_equal(result.cpu(), theirs, terms)
        assert share >= LEAST[rounded_to] if ours else share == 1


@pytest.mark.mps
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("table", [F32, BF16], ids=type_id)
@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@pytest.mark.parametrize("name", ROPES)
def test_rope(name: str, dtype: torch.dtype, table: torch.dtype, layout: str, device: str) -> None:
    """With 16-bit tables of split halves; of neighbours the eager backend takes the products in
    another order than any operator."""
    ours = table == F32 or (table == dtype and "split_half" in name)
    assert_eager_bits(name, rope_arguments(name, dtype, table, layout), device, ours)


@pytest.mark.mps
@pytest.mark.parametrize("table", [F32, BF16], ids=type_id)
@pytest.mark.parametrize("dtype", [BF16, F16], ids=type_id)
@pytest.mark.parametrize("name", ["rms_rope_split_half", "rms_rope_split_half_"])
def test_a_part_of_a_row(name: str, dtype: torch.dtype, table: torch.dtype, device: str) -> None:
    if "rot_dim" not in signature(getattr(eager, name)).parameters:
        pytest.skip("this comfy-kitchen rotates whole rows")
    arguments = rope_arguments(name, dtype, table, "slice of a packed projection", rotated=96)
    assert_eager_bits(name, arguments, device, ours=table in (F32, dtype))


@pytest.mark.mps
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name + "_" for name in ROPES])
def test_in_place(name: str, layout: str, device: str) -> None:
    """The bits of the function that is not in place, in the tensors themselves."""
    arguments = copied(rope_arguments(name, BF16, F32, layout), device)
    expected = call(name[:-1], arguments)
    operands = [arguments[key] for key in ("x", "q", "k") if key in arguments]
    results = call(name, arguments)
    for result, operand, values in zip(results, operands, expected, strict=True):
        assert result is operand
        assert torch.equal(operand, values)


@pytest.mark.mps
def test_what_lies_between_is_left(device: str) -> None:
    """q and k of one projection, with fewer heads for k, and values behind them."""
    packed = randn(1, N, (H + H // 2 + H // 2) * D, dtype=BF16).to(device)
    before = packed.clone()

    def split(t: Tensor) -> list[Tensor]:
        return [part.view(1, N, -1, D) for part in t.split([H * D, H // 2 * D, H // 2 * D], -1)]

    q, k, v = split(packed)
    freqs, scale = randn(1, N, 1, D // 2, 2, 2).to(device), randn(D).to(device)
    for x in (q, k):
        assert chosen("rms_rope1_", {"x": x, "freqs_cis": freqs, "scale": scale}) == "mlxnorm"
        ck.rms_rope1_(x, freqs, scale)
    old_q, old_k, old_v = split(before)
    assert torch.equal(q, ck.rms_rope1(old_q, freqs, scale))
    assert torch.equal(k, ck.rms_rope1(old_k, freqs, scale))
    assert torch.equal(v, old_v)


def overlapping() -> dict[str, dict[str, Any]]:
    """Calls that the eager backend refuses, though an operator might take them."""
    freqs, scale = randn(1, 16, 1, 32, 2, 2), randn(64)
    buffer = randn(16, 4 * 64)
    q, k = buffer[:, :64].view(1, 16, 1, 64), buffer[:, 32:96].view(1, 16, 1, 64)
    heads = buffer.view(1, 16, 4, 64)
    tables = {"freqs_cis": freqs, "q_scale": scale}
    return {
        "k over q": {"q": q, "k": k, **tables},
        "heads of two numbers": {"q": heads[:, :, :3], "k": heads[:, :, 3:], **tables},
        "weight in q": {"q": q, "k": q.clone(), "freqs_cis": freqs, "q_scale": buffer[0, :64]},
        "a row for all": {"q": scale.expand(1, 16, 1, 64), "k": q, **tables},
        "a gradient": {"q": q.clone().requires_grad_(), "k": k.clone(), **tables},
    }


@pytest.mark.parametrize("case", overlapping())
def test_in_place_refuses_what_eager_refuses(case: str) -> None:
    def error(name: str) -> str:
        with ck.use_backend(name), torch.no_grad(), pytest.raises((RuntimeError, ValueError)) as e:
            ck.rms_rope_(**overlapping()[case])
        return f"{e.type.__name__}: {e.value}"

    assert error("mlxnorm") == error("eager")


@pytest.mark.mps
@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_adaln(dtype: torch.dtype, device: str) -> None:
    assert_eager_bits("rms_adaln", adaln_arguments(dtype), device)
    assert_eager_bits("rms_adaln", adaln_arguments(F32, dtype), device)
    of_each_row = adaln_arguments(dtype) | {"scale": randn(N, 768, dtype=dtype, seed=3)}
    assert_eager_bits("rms_adaln", of_each_row, device)


@pytest.mark.mps
@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_gated_residual(dtype: torch.dtype, device: str) -> None:
    name = "rms_gated_residual"
    if name not in ck.list_backends()["eager"]["capabilities"]:
        pytest.skip("this comfy-kitchen does not have it")
    assert_eager_bits(name, sum_arguments(dtype), device)
    assert_eager_bits(name, sum_arguments(F32, dtype), device)
    wide = sum_arguments(dtype) | {"residual": randn(B, N, 768, seed=4), "norm_weight": randn(768)}
    assert_eager_bits(name, wide, device)
    of_batch = sum_arguments(dtype) | {"gate": randn(B, 1, 768, dtype=dtype)}
    assert_eager_bits(name, of_batch, device)


def near_misses() -> dict[str, tuple[str, dict[str, Any], str]]:
    """A function, what is changed of a call that fits, and the parameter that is named."""
    adaln, rope, one = adaln_arguments(BF16), rope_arguments("rms_rope", BF16, F32), "rms_rope1"
    x, freqs = rope_arguments(one, BF16, F32)["x"], rope["freqs_cis"]
    of_all, row = randn(768, dtype=BF16), adaln["scale"][0, 0]
    five = randn(2, 2, 2, 2, 768, dtype=BF16).transpose(0, 1)
    of_five = {"x": five, "scale": row, "shift": row}

    class Quantized(Tensor):
        pass

    return {
        "tables of 16 bits, neighbours": (one, {"freqs_cis": freqs.bfloat16()}, "freqs_cis"),
        "tables of the other 16 bits": ("rms_rope_split_half1", {"freqs_cis": freqs.half()}, "x"),
        "a matrix for all pairs": (one, {"freqs_cis": freqs[:, :, :, :1]}, "freqs_cis"),
        "tables longer than x": (one, {"x": x[:, : N // 2]}, "freqs_cis"),
        "tables of the other layout": (one, {"x": x.transpose(1, 2)}, "freqs_cis"),
        "a part that is not said": ("rms_rope", {"freqs_cis": freqs[:, :, :, :32]}, "freqs_cis"),
        "last dimension strided": (one, {"x": torch.cat((x, x), -1)[..., ::2]}, "x"),
        "one row for all": (one, {"x": x[:, :1].expand(B, N, H, D)}, "x"),
        "a weight that is not D": (one, {"scale": randn(1)}, "scale"),
        "k longer than q": ("rms_rope", {"k": randn(1, N, 4, D, dtype=BF16)}, "k"),
        "k of another dtype": ("rms_rope", {"k": rope["k"].half()}, "k"),
        "weights of two dtypes": ("rms_rope", {"k_scale": randn(D, dtype=BF16)}, "k_scale"),
        "an argument from later": (one, {"inverse": True}, "inverse"),
        "a subclass": (one, {"x": x.as_subclass(Quantized)}, "x"),
        "a gradient": (one, {"scale": randn(D).requires_grad_()}, "scale"),
        "float32 modulation": ("rms_adaln", {"scale": adaln["scale"].float()}, "x"),
        "a scale without dimensions": ("rms_adaln", {"scale": adaln["scale"][0, 0, 0]}, "scale"),
        "a scale for a row": ("rms_adaln", {"scale": adaln["scale"][..., :1]}, "scale"),
        "more scales than x": ("rms_adaln", {"x": adaln["x"][:1]}, "scale"),
        "five dimensions, permuted": ("rms_adaln", of_five, "x"),
        "float32 gate": ("rms_gated_residual", {"gate": randn(768)}, "activation"),
        "a gate for a row": ("rms_gated_residual", {"gate": randn(N, 1, dtype=BF16)}, "gate"),
        "no weight": ("rms_gated_residual", {"norm_weight": None}, "norm_weight"),
        "a permuted residual": (
            "rms_gated_residual",
            {"residual": randn(N, B, 768, dtype=BF16).transpose(0, 1)},
            "residual",
        ),
        "one residual for all": ("rms_gated_residual", {"residual": of_all}, "residual"),
    }


@pytest.mark.parametrize("case", near_misses())
def test_a_near_miss_is_declined(case: str) -> None:
    name, change, parameter = near_misses()[case]
    if name not in ck.list_backends()["mlxnorm"]["capabilities"]:
        pytest.skip("this comfy-kitchen does not have it")
    whole = {
        "rms_adaln": lambda: adaln_arguments(BF16),
        "rms_gated_residual": lambda: sum_arguments(BF16),
    }.get(name, lambda: rope_arguments(name, BF16, F32))()
    assert chosen(name, whole) == "mlxnorm"
    result = ck.registry.validate_backend_for_call("mlxnorm", name, whole | change)
    assert (result.success, result.failed_param) == (False, parameter), result
    assert chosen(name, whole | change) == "eager"


def test_autocast_and_other_devices_are_declined() -> None:
    arguments = adaln_arguments(BF16)
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen("rms_adaln", arguments) == "eager"
    meta = copied(arguments, "meta")
    assert chosen("rms_adaln", meta) == "eager"
    mixed = arguments | {"shift": arguments["shift"].to("meta")}
    assert not ck.registry.validate_backend_for_call("mlxnorm", "rms_adaln", mixed).success


def test_registered_once_and_before_eager(report: comfy.Report) -> None:
    again = comfy.register()
    assert again.as_dict() == report.as_dict()
    assert (
        ck.registry._priority
        == ["ascend", "cuda", "triton", "mlxnorm", "eager"][-len(ck.registry._priority) :]
    )
    assert ck.list_backends()["mlxnorm"]["available"]
    assert set(report.replaced) == set(ck.list_backends()["mlxnorm"]["capabilities"])
    assert {*ALL_ROPES, "rms_adaln"} <= set(report.replaced)
    assert "apply_rope1" in report.left_alone and "adaln" in report.left_alone
    assert "rms_rope, rms_rope_: qk_norm_rope(interleaved=True" in str(report)
    assert "adaln: left alone, it is a LayerNorm" in str(report)


def test_an_own_order_of_backends_is_kept(registered_anew: None) -> None:
    comfy.unregister()
    before = ck.registry._priority
    try:
        ck.set_backend_priority(["eager", "triton"])
        comfy.register()
        assert ck.registry._priority == ["mlxnorm", "eager", "triton"]
        ck.set_backend_priority(["triton"])
        comfy.register()
        assert ck.registry._priority == ["triton", "mlxnorm"]
    finally:
        ck.set_backend_priority(before)


def test_unregister(registered_anew: None, report: comfy.Report) -> None:
    arguments = adaln_arguments(BF16)
    report.restore()
    assert "mlxnorm" not in ck.registry._priority
    assert chosen("rms_adaln", arguments) == "eager"
    assert not ck.list_backends()["mlxnorm"]["capabilities"]
    with pytest.raises(BackendNotFoundError), ck.use_backend("mlxnorm"):
        pass
    comfy.unregister()
    comfy.register()
    assert chosen("rms_adaln", arguments) == "mlxnorm"


def test_another_rounding_is_measured(
    registered_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """comfy-kitchen's releases differ in it."""

    def products(t: Tensor, freqs: Tensor) -> Tensor:
        a, b = t.to(freqs.dtype).chunk(2, -1)
        f = freqs.movedim((-2, -1), (0, 1))
        return torch.cat((f[0, 0] * a + f[0, 1] * b, f[1, 0] * a + f[1, 1] * b), -1).type_as(t)

    monkeypatch.setattr(eager.rope, "apply_rope_split_half1", products)
    report = comfy.register()
    (entry,) = (
        entry
        for entry in report.entries
        if entry.function == "rms_rope_split_half1" and (BF16, BF16, F32) in entry.dtypes
    )
    assert entry.op is not None and "rope_rounding='products'" in entry.op
    name = "rms_rope_split_half1"
    assert_eager_bits(name, rope_arguments(name, BF16, BF16), "cpu")


def test_a_rounding_that_no_operator_has_is_declined(
    registered_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_16_bits(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
        root = x.square().mean(-1, keepdim=True).add(eps).rsqrt()
        return x * root * (1 + scale) + shift

    monkeypatch.setattr(eager, "rms_adaln", in_16_bits)
    report = comfy.register()
    (left,) = (e for e in report.entries if e.function == "rms_adaln" and e.op is None)
    assert (BF16, BF16, BF16) in left.dtypes and (F32, F32, F32) not in left.dtypes
    assert chosen("rms_adaln", adaln_arguments(BF16)) == "eager"
    assert chosen("rms_adaln", adaln_arguments(F32)) == "mlxnorm"


@pytest.mark.parametrize("version", [None, "0.2.24", "0.3.0", "1.0"])
def test_other_versions(
    registered_anew: None, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    def installed(name: str) -> str:
        assert name == "comfy-kitchen"
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    comfy.unregister()
    monkeypatch.setattr(metadata, "version", installed)
    with pytest.raises(ImportError, match=r'pip install "comfy-kitchen>=0.2.25,<0.3"'):
        comfy.register()
    assert "mlxnorm" not in ck.registry._priority


def test_imported_by_register_alone() -> None:
    code = (
        "import sys, torch_mlxnorm, torch_mlxnorm.integrations.comfy as comfy\n"
        "assert 'comfy_kitchen' not in sys.modules\n"
        "comfy.register(); assert 'comfy_kitchen' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.mps
@pytest.mark.parametrize("layout", ["BNHD", "BHND, of BNHD"])
def test_compiled_rope(layout: str, device: str) -> None:
    """comfy-kitchen's custom operators say that results have the strides of their inputs."""
    arguments = copied(rope_arguments("rms_rope", BF16, F32, layout), device)

    def attention(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        others = {key: arguments[key] for key in ("freqs_cis", "q_scale", "k_scale")}
        a, b = ck.rms_rope(q + 0, k + 0, **others)
        c, d = ck.rms_rope_split_half_(q + 1, k + 1, **others)
        return a.transpose(1, 2), b, c, d

    with torch.inference_mode():
        expected = attention(arguments["q"], arguments["k"])
        # Inductor has no compiler for simulated MPS.
        for backend in ("aot_eager", "inductor") if device == "cpu" else ("aot_eager",):
            torch._dynamo.reset()
            compiled = torch.compile(attention, backend=backend, fullgraph=True)
            results = compiled(arguments["q"], arguments["k"])
            for result, values in zip(results, expected, strict=True):
                assert torch.equal(result, values) and result.stride() == values.stride()


def test_compiled_sum() -> None:
    """No custom operator of theirs: Dynamo goes through the constraints to ours."""
    if not hasattr(ck, "rms_gated_residual"):
        pytest.skip("this comfy-kitchen does not have it")
    arguments = sum_arguments(BF16)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    ignored = {logging.Logger.debug}  # comfy-kitchen's, which breaks the graph otherwise
    with torch._dynamo.config.patch(ignore_logging_functions=ignored), torch.no_grad():
        compiled = torch.compile(ck.rms_gated_residual, backend=backend, fullgraph=True)
        assert torch.equal(compiled(**arguments), ck.rms_gated_residual(**arguments))
    assert sum(ops_of(graph)["rms_norm_add"] for graph in graphs) == 1
