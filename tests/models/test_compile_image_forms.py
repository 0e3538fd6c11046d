"""What image and video models have around norms: rotations of neighbours, modulation and gates,
with the bits of single norms, and what only looks like them."""

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
each_dtype = pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=type_id)
Norm = Callable[[Tensor, "Tensor | None"], Tensor]


def by_hand(x: Tensor, w: Tensor | None) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)
    return (y if w is None else y * w.float()).type_as(x)


def ours(x: Tensor, w: Tensor | None) -> Tensor:
    return rms_norm(x, w, EPS)


def many(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


# ---- rotations: of [batch, tokens, heads, DIM], with tables made of [tokens, DIM / 2] ----------


def full(cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """A column for each element."""
    return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)


def numbers(cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return (torch.complex(cos, sin),)


def halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return cos, sin


def two_by_two(cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return (torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2)),)


def turned(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    real, imaginary = y.reshape(*y.shape[:-1], -1, 2).unbind(-1)
    turn = torch.stack([-imaginary, real], -1).flatten(3)
    return (y.float() * cos[:, None] + turn.float() * sin[:, None]).to(y.dtype)


def complex_(y: Tensor, angles: Tensor) -> Tensor:
    pairs = torch.view_as_complex(y.float().reshape(*y.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * angles[:, None]).flatten(3).type_as(y)


def written(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[:, None, ::2], sin[:, None, 1::2]
    first, second = y.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(y)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out


def stacked(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[:, None], sin[:, None]
    first, second = y.unflatten(-1, (-1, 2)).float().unbind(-1)
    pairs = torch.stack([first * cos - second * sin, second * cos + first * sin], -1)
    return pairs.flatten(-2).to(y.dtype)


def matrices(y: Tensor, m: Tensor) -> Tensor:
    m, pairs = m[:, None], y.float().reshape(*y.shape[:-1], -1, 1, 2)
    return (m[..., 0] * pairs[..., 0] + m[..., 1] * pairs[..., 1]).reshape(y.shape).type_as(y)


ROTATIONS = {
    "turned": (full, turned),
    "complex": (numbers, complex_),
    "written": (full, written),
    "stacked": (halves, stacked),
    "matrices": (two_by_two, matrices),
}
each_rotation = pytest.mark.parametrize("name", ROTATIONS)
Rotation = Callable[..., Tensor]


def both(rotate: Rotation, N: Norm, q: Tensor, k: Tensor, w: Tensor, *tables: Tensor) -> Any:
    return rotate(N(q, w), *tables), rotate(N(k, w), *tables)


def joined(rotate: Rotation, N: Norm, q: Tensor, k: Tensor, w: Tensor, *tables: Tensor) -> Any:
    """Text before images, each with weights of its own, as Flux has them."""
    text = (N(x[:, :2] * 2, w + 1) for x in (q, k))
    images = (N(x[:, 2:], w) for x in (q, k))
    return tuple(rotate(torch.cat(parts, 1), *tables) for parts in zip(text, images, strict=True))


def cut(rotate: Rotation, N: Norm, q: Tensor, k: Tensor, w: Tensor, *tables: Tensor) -> Any:
    """Text behind the images is not rotated: HunyuanVideo."""
    tables = tuple(table[:-2] for table in tables)
    normed = [N(x, w) for x in (q, k)]
    return tuple(torch.cat([rotate(y[:, :-2], *tables), y[:, -2:]], 1) for y in normed)


def across(rotate: Rotation, N: Norm, q: Tensor, k: Tensor, w: Tensor, *tables: Tensor) -> Any:
    q = N(q.flatten(2), w.repeat(4)).view(q.shape)
    return rotate(q, *tables), rotate(N(k.flatten(2), w.repeat(4)).view(k.shape), *tables)


PLACES = {
    "both": (both, {"qk_norm_rope": 1}),
    "joined": (joined, {"qk_norm_rope": 2}),
    "cut": (cut, {"qk_norm_rope": 1, "rms_norm": 2}),
    "across heads": (across, {"qk_norm_rope": 1}),
}


def rotary_arguments(dtype: torch.dtype, tokens: int, tables: Any = full) -> tuple[Tensor, ...]:
    q, k = randn(2, 2, tokens, 4, DIM, dtype=dtype)
    cos, sin = randn(2, tokens, DIM // 2)
    return q, k, randn(DIM, dtype=dtype), *tables(cos, sin)


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@each_rotation
def test_rotations(name: str, place: str, dtype: torch.dtype) -> None:
    (function, expected), (tables, rotate) = PLACES[place], ROTATIONS[name]
    inputs = rotary_arguments(dtype, 6, tables)
    graph = rewritten(lambda *xs: function(rotate, by_hand, *xs), *inputs)
    if name == "complex" and dtype == torch.float32:  # PyTorch contracts: other bits
        expected = {"rms_norm": 4 if place == "joined" else 2}
    assert ops_of(graph) == expected
    results = run(graph, *inputs)
    assert all(map(torch.equal, results, function(rotate, ours, *inputs)))


@pytest.mark.parametrize("place", PLACES)
@each_rotation
def test_rotations_of_any_number_of_tokens(name: str, place: str) -> None:
    (function, expected), (tables, rotate) = PLACES[place], ROTATIONS[name]
    torch._dynamo.reset()
    fused = torch.compile(lambda *xs: function(rotate, by_hand, *xs), backend="mlxnorm")
    with torch.no_grad():
        q, k, w, *angles = rotary_arguments(torch.bfloat16, 6, tables)
        for value, dim in [(q, 1), (k, 1), *[(table, 0) for table in angles]]:
            torch._dynamo.mark_dynamic(value, dim)
        assert dict(report(fused, q, k, w, *angles)) == expected
        inputs = rotary_arguments(torch.bfloat16, 9, tables)
        with torch.compiler.set_stance("fail_on_recompile"):
            results = fused(*inputs)
    assert all(map(torch.equal, results, function(rotate, ours, *inputs)))


@each_rotation
def test_rotations_under_inductor(name: str) -> None:
    torch._dynamo.reset()
    tables, rotate = ROTATIONS[name]
    inputs = rotary_arguments(torch.bfloat16, 6, tables)
    fused = torch.compile(lambda *xs: both(rotate, by_hand, *xs), options=inductor_options())
    with torch.no_grad():
        assert dict(report(fused, *inputs)) == {"qk_norm_rope": 1}
        results = fused(*inputs)
    assert all(map(torch.equal, results, both(rotate, ours, *inputs)))


@each_dtype
def test_angles_in_float64(dtype: torch.dtype) -> None:
    """Lumina 2 multiplies in float64 on the CPU: nearly always the same in 16 bits."""
    q, k, w, angles = rotary_arguments(dtype, 600, numbers)
    inputs = q, k, w, angles.to(torch.complex128)
    graph = rewritten(lambda *xs: both(complex_, by_hand, *xs), *inputs)
    assert ops_of(graph) == ({"qk_norm_rope": 1} if dtype == torch.bfloat16 else {"rms_norm": 2})
    found = zip(run(graph, *inputs), both(complex_, ours, *inputs), strict=True)
    assert all((a == b).float().mean() >= 0.9999 for a, b in found)


def _pairs(y: Tensor) -> tuple[Tensor, Tensor]:
    return y.unflatten(-1, (-1, 2)).unbind(-1)


def _turned_by(turn: Callable[[Tensor, Tensor], list[Tensor]]) -> Rotation:
    def rotate(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turn_ = torch.stack(turn(*_pairs(y)), -1).flatten(-2)
        return (y.float() * cos[:, None] + turn_.float() * sin[:, None]).to(y.dtype)

    return rotate


def _written_as(elements: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Any:
    def rotate(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        out = torch.zeros_like(y)
        cos, sin = cos[:, None, ::2], sin[:, None, ::2]
        out[..., 0::2], out[..., 1::2] = elements(*_pairs(y), cos, sin)
        return out

    return rotate


def _half_written(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out, (a, b) = y.clone(), _pairs(y)
    out[..., 0::2] = a * cos[:, None, ::2] - b * sin[:, None, ::2]
    return out


def _conjugate(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = torch.view_as_complex(y.float().reshape(*y.shape[:-1], -1, 2)).conj()
    angles = torch.complex(cos[:, None, ::2], sin[:, None, ::2])
    return torch.view_as_real(pairs * angles).flatten(3).type_as(y)


def _halves_as_pairs(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = y.unflatten(-1, (2, -1)).unbind(-2)
    turn = torch.stack([-b, a], -1).flatten(-2)
    return (y.float() * cos[:, None] + turn.float() * sin[:, None]).to(y.dtype)


# Only their norms are replaced.
NO_ROTATIONS: dict[str, Rotation] = {
    "nothing negated": _turned_by(lambda a, b: [b, a]),
    "the other negated": _turned_by(lambda a, b: [b, -a]),
    "in order": _turned_by(lambda a, b: [-a, b]),
    "twice the same": _turned_by(lambda a, b: [-b, b]),
    "halves for pairs": _halves_as_pairs,
    "wrong signs": _written_as(lambda a, b, c, s: (a * c + b * s, a * s + b * c)),
    "cos for sin": _written_as(lambda a, b, c, s: (a * c - b * s, a * c + b * s)),
    "one element for the other": _written_as(lambda a, b, c, s: (b * c - a * s, b * s + a * c)),
    "another table": _written_as(lambda a, b, c, s: (a * c - b * s, a * s.exp() + b * c)),
    "half of it written": _half_written,
    "a conjugate": _conjugate,
    "used before": lambda y, c, s: turned(y, c, s) + y.exp(),
    "left in float32": lambda y, c, s: y.float() * c[:, None] + _turned(y).float() * s[:, None],
}


def _turned(y: Tensor) -> Tensor:
    a, b = _pairs(y)
    return torch.stack([-b, a], -1).flatten(-2)


@pytest.mark.parametrize("name", NO_ROTATIONS)
def test_what_is_no_rotation(name: str) -> None:
    rotate, (q, _, w, *tables) = NO_ROTATIONS[name], rotary_arguments(torch.bfloat16, 6)
    graph = rewritten(lambda q, w, *xs: rotate(by_hand(q, w), *xs), q, w, *tables)
    assert ops_of(graph) == {"rms_norm": 1}
    assert torch.equal(run(graph, q, w, *tables), rotate(ours(q, w), *tables))


# ---- modulation and gates ------------------------------------------------------------------------

# Of two tensors, a weight, and a row for each of the batch; what it becomes.
MODULATED: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "scale and shift": (
        lambda N, a, b, w, s: N(a, w) * (1 + s) + s * 2,
        {"rms_norm_modulate": 1},
    ),
    "scale": (lambda N, a, b, w, s: (1.0 + s) * N(a, w), {"rms_norm_modulate": 1}),
    "a scale that is there": (lambda N, a, b, w, s: N(a, None) * s, {"rms_norm_mul": 1}),
    "that, and a shift": (lambda N, a, b, w, s: s.exp() + N(a, w) * s, {"rms_norm_modulate": 1}),
    "a scale that is wanted as well": (
        lambda N, a, b, w, s: ((t := 1 + s), N(a, w) * t + s),
        {"rms_norm_modulate": 1},
    ),
    "scales of all rows": (
        lambda N, a, b, w, s: N(a, w) * (1 + b) + s,
        {"rms_norm_modulate": 1},
    ),
    "gate": (lambda N, a, b, w, s: a + s.tanh() * N(b, w), {"rms_norm_add": 1}),
    "gate, next norm": (
        lambda N, a, b, w, s: ((h := a + s.tanh() * N(b, w)), N(h, w) * (1 + s)),
        {"rms_norm_add_rms_norm": 1},
    ),
    "gate, next norm with a shift": (
        lambda N, a, b, w, s: ((h := N(b, w) * s + a), N(h, None) * (1 + s) + s),
        {"rms_norm_add_rms_norm": 1},
    ),
    "gated branch, norm": (
        lambda N, a, b, w, s: ((h := a + s * b), N(h, w) * (1 + s) + s),
        {"add_rms_norm": 1},
    ),
    "gated branch first": (
        lambda N, a, b, w, s: ((h := b * s + a), N(h, None)),
        {"add_rms_norm": 1},
    ),
    "both gated": (
        lambda N, a, b, w, s: ((h := b * s + a * s.exp()), N(h, w)),
        {"add_rms_norm": 1},
    ),
}
UNMODULATED: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "the norm is used as well": (
        lambda N, a, b, w, s: ((n := N(a, w)), n * (1 + s) + s),
        {"rms_norm": 1},
    ),
    "the product is used as well": (
        lambda N, a, b, w, s: ((n := N(a, w) * (1 + s)), n + s),
        {"rms_norm_modulate": 1},
    ),
    "a difference": (lambda N, a, b, w, s: N(a, w) * (1 + s) - s, {"rms_norm_modulate": 1}),
    "scale in float32": (
        lambda N, a, b, w, s: (N(a, w).float() * (1 + s.float())).to(a.dtype),
        {"rms_norm": 1},
    ),
    "shift alone": (lambda N, a, b, w, s: N(a, w) + s, {"rms_norm": 1}),
    "rows of scales": (lambda N, a, b, w, s: N(a, w) * (1 + b[..., :1]), {"rms_norm": 1}),
    "the norm grows": (lambda N, a, b, w, s: N(a[:1], w) * (1 + s) + s, {"rms_norm": 1}),
    "the gated norm is used as well": (
        lambda N, a, b, w, s: ((g := s * N(b, w)), a + g),
        {"rms_norm_mul": 1},
    ),
    "a shift for a residual": (
        lambda N, a, b, w, s: a[:, :1] + s * N(b, w),
        {"rms_norm_modulate": 1},
    ),
    "the gated branch is used as well": (
        lambda N, a, b, w, s: ((g := s * b), N(a + g, w)),
        {"add_rms_norm": 1},
    ),
    "a gate of rows": (
        lambda N, a, b, w, s: ((h := a + b[..., :1] * b), N(h, w)),
        {"add_rms_norm": 1},
    ),
}


@each_dtype
@pytest.mark.parametrize("name", [*MODULATED, *UNMODULATED])
def test_modulation_and_gates(name: str, dtype: torch.dtype) -> None:
    function, expected = (MODULATED | UNMODULATED)[name]
    if name == "scale in float32" and dtype == torch.float32:
        expected = {"rms_norm_modulate": 1}
    inputs = modulated_arguments(dtype)
    graph = rewritten(lambda *xs: function(by_hand, *xs), *inputs)
    assert ops_of(graph) == expected
    results = many(run(graph, *inputs))
    assert all(map(torch.equal, results, many(function(ours, *inputs))))


def modulated_arguments(dtype: torch.dtype) -> tuple[Tensor, ...]:
    a, b = randn(2, 2, 5, DIM, dtype=dtype)
    return a, b, randn(DIM, dtype=dtype), randn(2, 1, DIM, dtype=dtype)


@pytest.mark.parametrize("name", MODULATED)
def test_modulation_of_any_number_of_rows(name: str) -> None:
    function, expected = MODULATED[name]
    a, b, w, s = modulated_arguments(torch.bfloat16)
    fused = of_any_rows(lambda a, b: function(by_hand, a, b, w, s), a, b)
    with torch.no_grad():
        assert dict(report(fused, a, b)) == expected
        a, b = randn(2, 2, 9, DIM, dtype=torch.bfloat16)
        with torch.compiler.set_stance("fail_on_recompile"):
            results = many(fused(a, b))
    assert all(map(torch.equal, results, many(function(ours, a, b, w, s))))


def test_a_dropout_of_nothing_is_no_copy() -> None:
    def function(N: Norm, x: Tensor, w: Tensor) -> Tensor:
        return N(torch.nn.functional.dropout(x * 2, 0.5, training=False), w)

    x, w = randn(5, DIM), randn(DIM)
    graph = rewritten(lambda x, w: function(by_hand, x, w), x, w)
    assert not graph.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default)
    assert torch.equal(run(graph, x, w), function(ours, x, w))
