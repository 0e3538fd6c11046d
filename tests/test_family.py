"""Every op has all that belongs to an op, and every dispatcher of the source has its op."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ops import OPS, Call, Op, ScaleKind, check, each_op
from steps import FORMULAS
from torch import Tensor

import torch_mlxnorm
from torch_mlxnorm import functional, reference
from torch_mlxnorm.bench.compositions import COMPOSITIONS
from torch_mlxnorm.bench.shapes import USES

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs/ops.md").read_text()
EPS_OF = {"channel_rms_norm": "1e-12"}
OPTIONS = {"weight_offset": 0.0, "casting_mode": "gemma", "round_intermediates": False}


def section(title: str) -> str:
    """Of docs/ops.md."""
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOCS, re.DOTALL | re.MULTILINE)
    assert match is not None, f"docs/ops.md has no section {title}"
    return match[1]


def own_options(op: Op) -> dict[str, object]:
    options = dict.fromkeys(t.name for t in op.tensors.values() if t.keyword)
    options |= {"norm_before_gate": False, "group_size": 0} if op.gates else {}
    options |= {"activation": "silu" if op.gates else "none"} if op.activates else {}
    if op.adds_a_branch:
        options |= {"gate_activation": "none", "alpha": 1.0, "beta": 1.0}
    options |= {op.scale_offset: 1.0, "modulation": "steps"} if op.modulates else {}
    options |= {"form": "normalize", "silu": False} if op.has_channels else {}
    rotation = {
        "interleaved": False,
        "full_tables": False,
        "across_heads": False,
        "rope_rounding": "once",
    }
    return options | (rotation if op.rotates else {})


def expected_parameters(op: Op) -> dict[str, object]:
    """Names in order, with their defaults; `...` where there is none."""
    positional = {t.name: t.default for t in op.tensors.values() if not t.keyword}
    assert {name for name, default in positional.items() if default is None} <= {"shift", "bias"}
    options = {name: value for name, value in OPTIONS.items() if name in op.option_names}
    return positional | {"eps": float(EPS_OF.get(op.name, "1e-6"))} | own_options(op) | options


def test_the_family_is_complete() -> None:
    registered = {
        name.removeprefix("mlxnorm::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("mlxnorm::")
    }
    public = {name for name in registered if not name.startswith("_")}
    assert public == set(OPS)
    functions = {name for name in torch_mlxnorm.__all__ if hasattr(functional, name)}
    types = {
        "Activation",
        "CastingMode",
        "ChannelForm",
        "GateActivation",
        "Modulation",
        "RopeRounding",
    }
    assert functions - types == set(OPS)


@each_op
def test_has_schemas(op: Op) -> None:
    expected = expected_parameters(op)
    assert set(op.packet.overloads()) == {"default", "out"}
    for schema in (op.packet.default._schema, op.packet.out._schema):
        arguments = [a for a in schema.arguments if a.alias_info is None]
        assert [a.name for a in arguments] == list(expected)
        for a in arguments:
            assert (a.default_value if a.has_default_value() else ...) == expected[a.name]
            assert a.kwarg_only == (a.name in {*own_options(op), *OPTIONS})
            if a.name in op.tensors:
                optional = op.tensors[a.name].optional
                assert str(a.type) == ("Optional[Tensor]" if optional else "Tensor")
    assert len(op.packet.default._schema.returns) == len(op.results)

    out = op.packet.out._schema
    outs = [a for a in out.arguments if a.alias_info is not None]
    assert [a.name for a in outs] == op.results and not out.returns
    assert all(a.kwarg_only and a.is_out and a.alias_info.is_write for a in outs)


@pytest.mark.parametrize("key", ["CPU", "MPS", "Meta"])
@each_op
def test_has_kernels(mps: str, op: Op, key: str) -> None:
    for overload in ("", ".out"):
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        assert has(f"mlxnorm::{op.name}{overload}", key)
    for overload in (op.packet.default, op.packet.out):
        assert torch.Tag.pt2_compliant_tag in overload.tags


@each_op
def test_has_a_function(op: Op) -> None:
    """With the schema's parameters, defaults and kinds, then out; typed."""
    function = getattr(torch_mlxnorm, op.name)
    assert function is getattr(functional, op.name)
    parameters = inspect.signature(function, eval_str=True).parameters
    defaults = {p.name: ... if p.default is p.empty else p.default for p in parameters.values()}
    assert list(defaults.items()) == [*expected_parameters(op).items(), ("out", None)]
    for p in parameters.values():
        assert p.annotation is not p.empty
        keyword_only = p.name in {*own_options(op), *OPTIONS, "out"}
        assert (p.kind is p.KEYWORD_ONLY) == keyword_only
        if p.name in op.tensors:
            assert p.annotation == (Tensor | None if op.tensors[p.name].optional else Tensor)
    returned = inspect.signature(function, eval_str=True).return_annotation
    count = len(op.results)
    assert returned == (Tensor if count == 1 else tuple[(Tensor,) * count])
    assert parameters["out"].annotation == returned | None


@each_op
def test_has_a_reference(op: Op) -> None:
    """With the parameters of the function, out aside, so that they can be called alike."""
    ours = inspect.signature(getattr(functional, op.name)).parameters
    theirs = inspect.signature(getattr(reference, op.name)).parameters
    without_out = {name: p for name, p in ours.items() if name != "out"}
    assert list(theirs.items()) == list(without_out.items())


@each_op
def test_has_a_docstring(op: Op) -> None:
    """Formula, arguments, results, errors and source."""
    text = inspect.getdoc(getattr(functional, op.name)) or ""
    formula, _, rest = text.partition("Args:")
    arguments, _, rest = rest.partition("Returns:")
    returns, _, rest = rest.partition("Raises:")
    raises, _, source = rest.partition("Source: ")
    for result in op.results:
        assert re.search(rf"\b{result} += ", formula), result
    documented = re.findall(r"^    (\w[\w, ]*):", arguments, re.MULTILINE)
    names = [name for line in documented for name in line.split(", ")]
    assert sorted(names) == sorted([*expected_parameters(op), "out"])
    assert all(result in returns for result in op.results) or len(op.results) == 1
    for heading, body in (("Returns", returns), ("Raises", raises), ("Source", source)):
        assert body.strip(), f"the docstring of {op.name} says nothing under {heading}:"


@each_op
def test_has_an_example(op: Op) -> None:
    """At the end of its docstring, which calls it and runs as it stands."""
    _, heading, example = (inspect.getdoc(getattr(functional, op.name)) or "").partition(
        "\n\nExample::\n\n"
    )
    assert heading and f"torch_mlxnorm.{op.name}(" in example
    names: dict[str, object] = {}
    exec(textwrap.dedent(example), names)
    tensors = [value for value in names.values() if isinstance(value, Tensor)]
    assert len(tensors) >= len(op.results) and all(t.isfinite().all() for t in tensors)


@each_op
def test_has_a_section_in_the_docs(op: Op) -> None:
    """Its signature and formula, and what a user looks for."""
    text = section(op.name)
    signature = re.sub(r"\s+", " ", text.strip().split("\n\n")[0])
    positional = [t for t in op.tensors.values() if not t.keyword]
    defaults = {None: "=None", ...: ""}
    names = [f"{t.name}{'?' * t.optional}{defaults[t.default]}" for t in positional]
    own = [f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in own_options(op).items()]
    options = [name for name in OPTIONS if name in op.option_names]
    expected = ", ".join([*names, f"eps={EPS_OF.get(op.name, '1e-6')}", "*", *own, *options])
    assert signature.strip() == f"{op.name}({expected}) -> {', '.join(op.results)}"
    for result in op.results:
        name = re.sub("out_[abc]", "out_i", result)
        assert re.search(rf"^    {name} += ", text, re.MULTILINE), name
    for heading in ("Shapes", "Dtypes", "Rounding", "Errors", "Bytes", "Replaces"):
        assert f"**{heading}.**" in text, f"docs/ops.md, {op.name}: no paragraph **{heading}.**"


@each_op
def test_has_its_homes(op: Op) -> None:
    """A formula that CPU and Metal share, checks, and a kernel on each side."""
    for path in (
        f"csrc/ops/{op.name}.h",
        f"shaders/formulas/{op.name}.h",
        f"csrc/cpu/isa/{op.name}.cpp",
        f"shaders/{op.name}.metal",
    ):
        assert (ROOT / path).exists(), path


@each_op
def test_is_known_everywhere(op: Op) -> None:
    """Where a new op is easily forgotten."""
    places = {
        "README.md, the table": f"| `{op.name}` |" in (ROOT / "README.md").read_text(),
        "CHANGELOG.md": f"`{op.name}`" in (ROOT / "CHANGELOG.md").read_text(),
        "torch_mlxnorm/__init__.py, __all__": op.name in torch_mlxnorm.__all__,
        "tests/steps.py, FORMULAS": op.name in FORMULAS,
        "torch_mlxnorm/bench/compositions.py": op.name in COMPOSITIONS,
        "torch_mlxnorm/bench/shapes.py, USES": op.name in {use.op for use in USES},
    }
    missing = [place for place, is_there in places.items() if not is_there]
    assert not missing, f"{op.name} is missing in {missing}"


# ---- mlx-native 0.9.0, rms_norm.rs --------------------------------------------------------------

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
EPS = 1e-6


def N(x: Tensor, weight: Tensor | None = None) -> Tensor:
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS)
    return normed if weight is None else normed * weight


def _end_of_layer(moe_accum: Tensor, t: dict[str, Tensor]) -> tuple[Tensor, ...]:
    mlp_down = t["attn_out"] + N(moe_accum, t["w2"])
    return mlp_down, (t["residual"] + N(mlp_down, t["w3"])) * t["layer_scalar"]


def _post_attn(t: dict[str, Tensor]) -> tuple[Tensor, ...]:
    r = t["hidden"] + N(t["attn_out"], t["post_attn_weight"])
    return r, N(r, t["weight_a"]), N(r, t["weight_b"]), N(r, t["weight_c"])


@dataclass(frozen=True)
class Dispatcher:
    """A function of the source: its formula, and the tensors that it takes, all of one dtype."""

    op: str
    dtypes: tuple[torch.dtype, ...]
    formula: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
    scale: tuple[ScaleKind, ...] = ("dim",)
    missing: tuple[str, ...] = ()


SCALAR_IS_VECTOR: tuple[ScaleKind, ...] = ("one", "dim")  # false, true

SOURCE = {
    "dispatch_rms_norm": Dispatcher(
        "rms_norm", (F32, F16, BF16), lambda t: (N(t["x"], t["weight"]),)
    ),
    "dispatch_rms_norm_no_scale_bf16": Dispatcher(
        "rms_norm", (BF16,), lambda t: (N(t["x"]),), missing=("weight",)
    ),
    "dispatch_rms_norm_no_scale_f32": Dispatcher(
        "rms_norm", (F32,), lambda t: (N(t["x"]),), missing=("weight",)
    ),
    "dispatch_rms_norm_mul": Dispatcher(
        "rms_norm_mul",
        (F32, F16, BF16),
        lambda t: (N(t["x"], t["weight"]) * t["scale"],),
        scale=("rows",),
    ),
    "dispatch_rms_norm_f32_triple": Dispatcher(
        "rms_norm_triple",
        (F32,),
        lambda t: tuple(N(t["x"], t[w]) for w in ("weight_a", "weight_b", "weight_c")),
    ),
    "dispatch_fused_post_attn_triple_norm_f32": Dispatcher(
        "fused_post_attn_triple_norm", (F32,), _post_attn
    ),
    "dispatch_fused_post_ff_norm2_endlayer_f32": Dispatcher(
        "fused_post_ff_norm2_endlayer",
        (F32,),
        lambda t: _end_of_layer(t["moe_accum"], t),
        scale=SCALAR_IS_VECTOR,
    ),
    "dispatch_fused_moe_wsum_post_ff_norm2_endlayer_f32_v2": Dispatcher(
        "fused_moe_wsum_post_ff_norm2_endlayer",
        (F32,),
        lambda t: _end_of_layer(
            (t["routing_weights"].unsqueeze(-1) * t["expert_outputs"]).sum(dim=-2), t
        ),
        scale=SCALAR_IS_VECTOR,
    ),
}


@pytest.mark.parametrize("name", SOURCE)
def test_source_dispatcher(device: str, name: str) -> None:
    """Formula, dtypes, `[rows, dim]`, weights `[dim]`, `scalar_is_vector`; and what it refuses."""
    source = SOURCE[name]
    op = OPS[source.op]
    missing = (*source.missing, *op.named("bias"))
    for dtype in source.dtypes:
        for scale in source.scale:
            for rows, dim in [(1, 12), (3, 256), (2, 2816), (0, 16)]:  # no rows: an error there
                call = op.call((rows,), dim, dtype, device, scale=scale, missing=missing)
                assert_follows(check(call.under(eps=EPS)), source, call)
        call = op.call((2,), 16, dtype, device, scale=source.scale[-1], missing=missing)
        assert_refuses(call)


def assert_follows(results: tuple[Tensor, ...], source: Dispatcher, call: Call) -> None:
    exact = source.formula({k: t.cpu().double() for k, t in call.tensors.items() if t is not None})
    for result, expected in zip(results, exact, strict=True):
        step = torch.finfo(result.dtype).eps
        torch.testing.assert_close(result.cpu().double(), expected, rtol=4 * step, atol=16 * step)


def assert_refuses(call: Call) -> None:
    """dim or top_k 0, buffers that differ in size, activations that differ in dtype."""

    def refused(error: type[Exception], wrong: Call, outs: list[Tensor] | None = None) -> None:
        with pytest.raises(error, match=f"mlxnorm::{call.op.name}: "):
            wrong(out=outs)

    other = torch.bfloat16 if call.dtype != torch.bfloat16 else torch.float16
    refused(RuntimeError, call.mapped(lambda t: t[..., :0]))
    for tensor in call.op.tensors.values():
        if tensor.role == "experts":
            refused(RuntimeError, call.mapped(lambda t: t[:, :0], [tensor.name]))
        if tensor.name != call.op.first and call.tensors[tensor.name] is not None:
            refused(RuntimeError, call.mapped(lambda t: t[..., :-1], [tensor.name]))
            wrong = torch.int32 if tensor.name in call.op.operands else other
            refused(TypeError, call.mapped(lambda t, to=wrong: t.to(to), [tensor.name]))
    for i in range(len(call.op.results)):
        outs = list(call.empty_outs())
        for error, wrong in ((RuntimeError, outs[i][:, :-1]), (TypeError, outs[i].to(other))):
            refused(error, call, [*outs[:i], wrong, *outs[i + 1 :]])


@pytest.mark.parametrize("name", SOURCE)
def test_source_dispatcher_is_documented(name: str) -> None:
    """Where it went, and in the docstring from where the op came."""
    rows = re.findall(
        r"^\| (`.*`)[^|]* \| (.*) \|$", section("From mlx-native 0.9.0"), re.MULTILINE
    )
    (target,) = [to for names, to in rows if f"`{name}`" in names.split(", ")]
    op = SOURCE[name].op
    assert f"`{op}`" in target
    assert f"``{name}``" in (getattr(functional, op).__doc__ or "")
