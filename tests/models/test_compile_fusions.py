"""Which operators what stands around norms becomes, with the bits of single norms, and what stays
apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import of_any_rows, ops_of, rewritten, run
from tensors import randn, type_id
from torch import Tensor

from torch_mlxnorm import rms_norm
from torch_mlxnorm.compile import inductor_options, report

DIM, EPS = 24, 1e-5
DTYPES = (torch.bfloat16, torch.float32)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
Norm = Callable[[Tensor, "Tensor | None"], Tensor]


def by_hand(x: Tensor, w: Tensor | None, eps: float = EPS) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return (y if w is None else y * w.float()).type_as(x)


def ours(x: Tensor, w: Tensor | None, eps: float = EPS) -> Tensor:
    return rms_norm(x, w, eps)


def flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def wsum(N: Norm, a: Tensor, b: Tensor, w: Tensor, scale: Tensor) -> Any:
    """The end of a layer from two experts for each row on, whose products are float32."""
    experts = torch.stack([flat(a), flat(b) + flat(a)], 1).flatten(0, 1)
    weights = flat(b)[:, :2].float().flatten()
    products = (experts * weights[:, None]).view(-1, 2, a.shape[-1])
    s = b + N(products.sum(1).to(a.dtype).view(a.shape), w)
    return (a + N(s, w)) * scale


def moe(N: Norm, a: Tensor, b: Tensor, w: Tensor, scale: Tensor) -> Any:
    s = b + N(a, w)
    return s, (a + N(s, w)) * scale


def triple(N: Norm, a: Tensor, b: Tensor, w: Tensor, scale: Tensor) -> Any:
    return N(a, w), N(flat(a), None), N(flat(a), w * 2)


def post_attention(N: Norm, a: Tensor, b: Tensor, w: Tensor, scale: Tensor) -> Any:
    h = a + N(b, w)
    return h, N(h, w), N(flat(h), None) * w * 0.5, N(flat(h), w)


# A function of norms, two inputs, a weight and a scale of one element, and what it becomes.
FUSED: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "add, norm": (lambda N, a, b, w, s: (N(h := a + b, w), h), {"add_rms_norm": 1}),
    "add with a factor, norm": (
        lambda N, a, b, w, s: (N(h := a + b * 0.22, w), h),
        {"add_rms_norm": 1},
    ),
    "norm, add": (lambda N, a, b, w, s: a + N(b, w), {"rms_norm_add": 1}),
    "norm without weight, add": (lambda N, a, b, w, s: N(b, None) + a, {"rms_norm_add": 1}),
    "norm, add, scale": (lambda N, a, b, w, s: (a + N(b, w)) * s, {"rms_norm_add": 1}),
    "norm, add, row of scales": (lambda N, a, b, w, s: (a + N(b, w)) * w, {"rms_norm_add": 1}),
    "norm, add, norm": (
        lambda N, a, b, w, s: (h := a + N(b, w), N(h, None)),
        {"rms_norm_add_rms_norm": 1},
    ),
    "norm, add, scale, norm": (
        lambda N, a, b, w, s: (h := (a + N(b, w)) * s, N(h, w)),
        {"rms_norm_add_rms_norm": 1},
    ),
    "norm, add, norm of a view": (
        lambda N, a, b, w, s: (h := a + N(b, w), N(flat(h), w)),
        {"rms_norm_add_rms_norm": 1},
    ),
    "three norms": (triple, {"rms_norm_triple": 1}),
    "norm, add, three norms": (post_attention, {"fused_post_attn_triple_norm": 1}),
    "end of a MoE layer": (moe, {"fused_post_ff_norm2_endlayer": 1}),
    "end of a MoE layer, experts": (wsum, {"fused_moe_wsum_post_ff_norm2_endlayer": 1}),
    "norm times a tensor": (lambda N, a, b, w, s: N(a, w) * b, {"rms_norm_mul": 1}),
}


def arguments(dtype: torch.dtype) -> tuple[Tensor, ...]:
    a, b = randn(2, 5, DIM, dtype=dtype), randn(2, 5, DIM, dtype=dtype)
    return a, b, 1 + randn(DIM, dtype=dtype) / 8, randn(1, dtype=dtype)


def many(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


@each_dtype
@pytest.mark.parametrize("name", FUSED)
def test_fusions(name: str, dtype: torch.dtype) -> None:
    function, expected = FUSED[name]
    if dtype == torch.float32 and function is wsum:
        expected = {"fused_post_ff_norm2_endlayer": 1}  # a sum of float32 is not rounded
    inputs = arguments(dtype)
    graph = rewritten(lambda *xs: function(by_hand, *xs), *inputs)
    assert ops_of(graph) == expected
    results = many(run(graph, *inputs))
    assert all(map(torch.equal, results, many(function(ours, *inputs))))


@pytest.mark.parametrize("name", FUSED)
def test_fusions_of_any_number_of_rows(name: str) -> None:
    function, expected = FUSED[name]
    inputs = arguments(torch.bfloat16)
    fused = of_any_rows(lambda *xs: function(by_hand, *xs), *inputs)
    with torch.no_grad():
        assert dict(report(fused, *inputs)) == expected
        a, b = randn(2, 2, 9, DIM, dtype=torch.bfloat16)
        with torch.compiler.set_stance("fail_on_recompile"):
            results = many(fused(a, b, *inputs[2:]))
    assert all(map(torch.equal, results, many(function(ours, a, b, *inputs[2:]))))


@each_dtype
def test_a_residual_in_float32(dtype: torch.dtype) -> None:
    a, (_, b, w, _) = randn(2, 5, DIM), arguments(dtype)
    graph = rewritten(lambda a, b, w: a + by_hand(b, w), a, b, w)
    assert ops_of(graph) == {"rms_norm_add": 1}
    assert torch.equal(run(graph, a, b, w), a + ours(b, w))


# What is left as it is, beside single norms.
APART: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "the norm is used twice": (
        lambda N, a, b, w, s: (n := N(b, w), a + n),
        {"rms_norm": 1},
    ),
    "the sum is broadcast": (lambda N, a, b, w, s: a + N(b[:1], w), {"rms_norm": 1}),
    "the norm is added to itself": (lambda N, a, b, w, s: (n := N(b, w)) + n, {"rms_norm": 1}),
    "a difference": (lambda N, a, b, w, s: a - N(b, w), {"rms_norm": 1}),
    "a sum with a factor": (
        lambda N, a, b, w, s: torch.add(a, N(b, w), alpha=2),
        {"rms_norm": 1},
    ),
    "the sum is used before the scale": (
        lambda N, a, b, w, s: ((h := a + N(b, w)) * s, h),
        {"rms_norm_add": 1},
    ),
    "a scale of rows": (
        lambda N, a, b, w, s: (a + N(b, w)) * a[..., :1],
        {"rms_norm_add": 1},
    ),
    "a scale that changes the dtype": (
        lambda N, a, b, w, s: (a + N(b, w)) * s.double(),
        {"rms_norm_add": 1},
    ),
    "another eps": (
        lambda N, a, b, w, s: (h := a + N(b, w), N(h, w, 1e-3)),
        {"rms_norm_add": 1, "rms_norm": 1},
    ),
    "the second norm is of something else": (
        lambda N, a, b, w, s: (a + N(b, w), N(a, w)),
        {"rms_norm_add": 1, "rms_norm": 1},
    ),
    "one norm makes the weight of another": (
        lambda N, a, b, w, s: N(a, N(a, N(a, w)[0, 0])[0, 0]),
        {"rms_norm": 3},
    ),
    "the residual is made of the norm": (
        lambda N, a, b, w, s: (h := a + b, N(h, w), N(h, N(h, w)[0, 0])),
        {"rms_norm": 3},
    ),
    "a norm of a norm": (lambda N, a, b, w, s: N(N(N(a, w), w), None), {"rms_norm": 3}),
    "a norm that is a weight": (
        lambda N, a, b, w, s: N(a, N(N(w, None), a[0, 0])),
        {"rms_norm": 3},
    ),
    "norms that need one another": (
        lambda N, a, b, w, s: (h := a + b, n := N(w, None), N(h, n), N(flat(h), N(n, w)), N(h, w)),
        {"rms_norm": 2, "rms_norm_triple": 1},
    ),
    "rows are cut": (
        lambda N, a, b, w, s: (h := a + b, N(h.view(2, 5, 2, DIM // 2), None)),
        {"rms_norm": 1},
    ),
    "a sum of integers": (lambda N, a, b, w, s: N(a, w) + 1, {"rms_norm": 1}),
}


@each_dtype
@pytest.mark.parametrize("name", APART)
def test_what_stays_apart(name: str, dtype: torch.dtype) -> None:
    function, expected = APART[name]
    inputs = arguments(dtype)
    graph = rewritten(lambda *xs: function(by_hand, *xs), *inputs)
    assert ops_of(graph) == expected
    results = many(run(graph, *inputs))
    assert all(map(torch.equal, results, many(function(ours, *inputs))))


def test_experts_that_are_rounded_before_their_sum() -> None:
    def rounded(N: Norm, a: Tensor, b: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        products = torch.stack([a, b], -2) * b[..., :2, None]
        s = b + N(products.sum(-2), w)
        return (a + N(s, w)) * scale

    inputs = arguments(torch.bfloat16)
    graph = rewritten(lambda *xs: rounded(by_hand, *xs), *inputs)
    assert ops_of(graph) == {"fused_post_ff_norm2_endlayer": 1}
    assert torch.equal(run(graph, *inputs), rounded(ours, *inputs))


def half_turn(x: Tensor) -> Tensor:
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos) + (half_turn(x) * sin)


def heads_first(N: Norm, q: Tensor, k: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return tuple(rotated(N(x, w).transpose(1, 2), cos[:, None], sin[:, None]) for x in (q, k))


def tokens_first(N: Norm, q: Tensor, k: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return tuple(rotated(N(x, w), cos[:, :, None], sin[:, :, None]) for x in (q, k))


def with_values(N: Norm, q: Tensor, k: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return *tokens_first(N, q, k, w, cos, sin), N(k * 2, None).transpose(1, 2)


def across(N: Norm, q: Tensor, k: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> Any:
    y = N(q.flatten(2), w.repeat(4)).view(q.shape).transpose(1, 2)
    return rotated(y, cos[:, None], sin[:, None])


def in_part(N: Norm, q: Tensor, k: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> Any:
    y, r = N(q, w), DIM // 2
    front = rotated(y[..., :r], cos[:, :, None, :r], sin[:, :, None, :r])
    return torch.cat([front, y[..., r:]], -1)


def in_float32(N: Norm, q: Tensor, k: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> Any:
    cos, sin = cos.float() + 0.001, sin.float() - 0.001
    return rotated(N(q, w), cos[:, :, None], sin[:, :, None]).to(q.dtype)


ROTATED: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "heads first": (heads_first, {"qk_norm_rope": 1}),
    "tokens first": (tokens_first, {"qk_norm_rope": 1}),
    "with values": (with_values, {"qkv_norm_rope": 1}),
    "across heads": (across, {"rms_norm_rope": 1}),
    "in part": (in_part, {"rms_norm_rope": 1}),
    "tables in float32": (in_float32, {"rms_norm_rope": 1}),
}


def rotary_arguments(dtype: torch.dtype, tokens: int) -> tuple[Tensor, ...]:
    shapes = [(2, tokens, 4, DIM), (2, tokens, 2, DIM), (DIM,), *[(2, tokens, DIM)] * 2]
    return tuple(randn(*shape, dtype=dtype) for shape in shapes)


@each_dtype
@pytest.mark.parametrize("name", ROTATED)
def test_rotary(name: str, dtype: torch.dtype) -> None:
    function, expected = ROTATED[name]
    inputs = rotary_arguments(dtype, 5)
    graph = rewritten(lambda *xs: function(by_hand, *xs), *inputs)
    assert ops_of(graph) == expected
    results = many(run(graph, *inputs))
    assert all(map(torch.equal, results, many(function(ours, *inputs))))


@pytest.mark.parametrize("name", ROTATED)
def test_rotary_of_any_number_of_tokens(name: str) -> None:
    function, expected = ROTATED[name]
    inputs = rotary_arguments(torch.bfloat16, 5)
    fused = of_any_rows(lambda *xs: function(by_hand, *xs), *inputs)
    with torch.no_grad():
        assert dict(report(fused, *inputs)) == expected
        inputs = rotary_arguments(torch.bfloat16, 9)
        with torch.compiler.set_stance("fail_on_recompile"):
            results = many(fused(*inputs))
    assert all(map(torch.equal, results, many(function(ours, *inputs))))


NOT_ROTATED: dict[str, Callable[..., Tensor]] = {
    "not negated": lambda y, cos, sin: (
        y * cos + torch.cat((y[..., DIM // 2 :], y[..., : DIM // 2]), -1) * sin
    ),
    "the other half negated": lambda y, cos, sin: (
        y * cos + torch.cat((y[..., DIM // 2 :], -y[..., : DIM // 2]), -1) * sin
    ),
    "halves in order": lambda y, cos, sin: (
        y * cos + torch.cat((-y[..., : DIM // 2], y[..., DIM // 2 :]), -1) * sin
    ),
    "parts that are no halves": lambda y, cos, sin: (
        y * cos + torch.cat((-y[..., 8:], y[..., :8]), -1) * sin
    ),
    "a difference": lambda y, cos, sin: y * cos - half_turn(y) * sin,
    "the norm is used beside": lambda y, cos, sin: rotated(y, cos, sin) + y.exp(),
    "another tensor": lambda y, cos, sin: y * cos + half_turn(y + 1) * sin,
}


@pytest.mark.parametrize("name", NOT_ROTATED)
def test_what_is_no_rotation(name: str) -> None:
    x, w, cos, sin = randn(2, 5, DIM), randn(DIM), randn(5, DIM), randn(5, DIM)
    function = NOT_ROTATED[name]
    graph = rewritten(lambda x, w, c, s: function(by_hand(x, w), c, s), x, w, cos, sin)
    assert ops_of(graph) == {"rms_norm": 1}
    assert torch.equal(run(graph, x, w, cos, sin), function(ours(x, w), cos, sin))


silu, sigmoid = torch.nn.functional.silu, torch.sigmoid


def normalized(y: Tensor) -> Tensor:
    return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)


GATED: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], dict[str, Any]]] = {
    "Mamba2": (
        lambda x, g, w: w * normalized(x.float() * silu(g.float())).to(x.dtype),
        {"casting_mode": "llama"},
    ),
    "Falcon-H1": (
        lambda x, g, w: (w * normalized(x.float() * silu(g.float()))).to(x.dtype),
        {},
    ),
    "Zamba2, in groups": (
        lambda x, g, w: (
            w
            * normalized((x.float() * silu(g.float())).view(*x.shape[:-1], 3, DIM // 3))
            .view(x.shape)
            .to(x.dtype)
        ),
        {"casting_mode": "llama", "group_size": DIM // 3},
    ),
    "Qwen3-Next": (
        lambda x, g, w: (w * normalized(x.float()).to(x.dtype) * silu(g.float())).to(x.dtype),
        {"casting_mode": "llama", "norm_before_gate": True, "round_intermediates": True},
    ),
    "Kimi Linear": (
        lambda x, g, w: (w * normalized(x.float()) * sigmoid(g.float())).to(x.dtype),
        {"norm_before_gate": True, "activation": "sigmoid"},
    ),
    "silu in other words": (
        lambda x, g, w: (w * normalized(x.float()) * (g.float() / (1 + torch.exp(-g.float())))).to(
            x.dtype
        ),
        {"norm_before_gate": True},
    ),
}


@each_dtype
@pytest.mark.parametrize("name", GATED)
def test_gates(name: str, dtype: torch.dtype) -> None:
    function, options = GATED[name]
    x, g, w, _ = arguments(dtype)
    graph = rewritten(function, x, g, w)
    assert ops_of(graph) == {"gated_rms_norm": 1}
    if dtype == torch.bfloat16:
        (call,) = graph.graph.find_nodes(
            op="call_function", target=torch.ops.mlxnorm.gated_rms_norm.default
        )
        assert dict(call.kwargs) == options
    close = {"rtol": 2**-7, "atol": 2**-9} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(run(graph, x, g, w), function(x, g, w), **close)
    differ = (run(graph, x, g, w) != function(x, g, w)).float().mean()
    assert dtype == torch.float32 or differ < 0.01


def test_a_gate_that_is_rounded() -> None:
    """Then it is a tensor like another."""
    x, g, w, _ = arguments(torch.bfloat16)
    graph = rewritten(lambda x, g, w: by_hand(x, w) * silu(g), x, g, w)
    assert ops_of(graph) == {"rms_norm_mul": 1}
    assert torch.equal(run(graph, x, g, w), ours(x, w) * silu(g))


def test_under_inductor() -> None:
    """Whose graphs have other words for casts and activations."""
    x, g, w, _ = arguments(torch.bfloat16)
    q, k, *others = rotary_arguments(torch.bfloat16, 5)

    def every(N: Norm) -> tuple[list[Any], list[Any]]:
        # Each has inputs of its own, or they would share norms.
        rotated = [
            function(N, q * (i + 2), k * (i + 2), *others)
            for i, (function, _) in enumerate(ROTATED.values())
        ]
        return rotated, [f(x * (i + 2), g, w) for i, (f, _) in enumerate(GATED.values())]

    fast = torch.compile(lambda: every(by_hand), options=inductor_options(), fullgraph=True)
    with torch.no_grad():
        assert dict(report(fast)) == {
            "gated_rms_norm": len(GATED),
            "rms_norm_rope": 3,
            "qk_norm_rope": 2,
            "qkv_norm_rope": 1,
        }
        torch.testing.assert_close(fast(), every(ours), rtol=2**-6, atol=2**-6)
