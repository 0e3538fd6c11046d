"""Which graphs are norms, in all the words that models have for them, and which only look alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import is_op, of_any_rows, ops_of, rewritten, run
from tensors import randn, type_id
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from torch_mlxnorm import rms_norm
from torch_mlxnorm.compile import report
from torch_mlxnorm.compile.graph import rewrite_graph

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DIM, EPS = 24, 1e-5
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=type_id)

# What the squares are, what their mean is, and what x is divided by.
SQUARES: dict[str, Callable[[Tensor], Tensor]] = {
    "pow": lambda x: x.pow(2),
    "pow 2.0": lambda x: torch.pow(x, 2.0),
    "product": lambda x: x * x,
    "square": lambda x: x.square(),
}
MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda s: s.mean(-1, keepdim=True),
    "mean of a tuple": lambda s: torch.mean(s, dim=(-1,), keepdim=True),
    "mean of the last": lambda s: s.mean(dim=s.dim() - 1, keepdim=True),
    "mean, unsqueezed": lambda s: s.mean(-1).unsqueeze(-1),
    "mean in float32": lambda s: s.mean(-1, keepdim=True, dtype=torch.float32),
    "sum / dim": lambda s: s.sum(-1, keepdim=True) / s.shape[-1],
    "sum * (1 / dim)": lambda s: s.sum(-1, keepdim=True) * (1.0 / s.shape[-1]),
}
ROOTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rsqrt": lambda x, m: x * torch.rsqrt(m + EPS),
    "rsqrt first": lambda x, m: torch.rsqrt(EPS + m) * x,
    "pow(-0.5)": lambda x, m: x * torch.pow(m + EPS, -0.5),
    "1 / sqrt": lambda x, m: x * (1 / torch.sqrt(m + EPS)),
    "sqrt.reciprocal": lambda x, m: x * (m + EPS).sqrt().reciprocal(),
    "x / sqrt": lambda x, m: x / torch.sqrt(m + EPS),
    "x / pow(0.5)": lambda x, m: x / (m + EPS).pow(0.5),
    "sqrt ** -1": lambda x, m: x * (m + EPS).sqrt() ** -1,
}


def normalized(x: Tensor) -> Tensor:
    return ROOTS["rsqrt"](x, MEANS["mean"](SQUARES["pow"](x)))


def inputs(dtype: torch.dtype, weight_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    return randn(2, 5, DIM, dtype=dtype), 1 + randn(DIM, dtype=weight_dtype or dtype) / 8


def options_in(graph: torch.fx.GraphModule) -> dict[str, Any]:
    (node,) = [node for node in graph.graph.nodes if is_op(node)]
    return dict(node.kwargs)


WORDS = [(squares, "mean", "rsqrt") for squares in SQUARES]
WORDS += [("pow", mean, "rsqrt") for mean in MEANS] + [("pow", "mean", root) for root in ROOTS]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=type_id)
@pytest.mark.parametrize(("squares", "mean", "root"), WORDS, ids=lambda v: v)
def test_words_for_a_norm(squares: str, mean: str, root: str, dtype: torch.dtype) -> None:
    def norm(x: Tensor, w: Tensor) -> Tensor:
        y = x.float()
        return (ROOTS[root](y, MEANS[mean](SQUARES[squares](y))) * w.float()).to(x.dtype)

    x, w = inputs(dtype)
    graph = rewritten(norm, x, w)
    assert ops_of(graph) == {"rms_norm": 1}
    assert torch.equal(run(graph, x, w), rms_norm(x, w, EPS))
    assert not any("sqrt" in node.name or "pow" in node.name for node in graph.graph.nodes)


# The norm of a model, and the options of the operator that has its roundings.
FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], dict[str, Any]]] = {
    "llama": (lambda x, w: w * normalized(x.float()).to(x.dtype), {"casting_mode": "llama"}),
    "gemma": (lambda x, w: (normalized(x.float()) * w).to(x.dtype), {}),
    "gemma, 1 + w": (
        lambda x, w: (normalized(x.float()) * (1.0 + w.float())).type_as(x),
        {"weight_offset": 1.0},
    ),
    "llama, float32 weight": (
        lambda x, w: (w.float() * normalized(x.float()).to(x.dtype)).to(x.dtype),
        {"casting_mode": "llama"},
    ),
    "llama, 1 + w": (
        lambda x, w: ((1 + w.float()) * normalized(x.float()).to(x.dtype)).to(x.dtype),
        {"casting_mode": "llama", "weight_offset": 1.0},
    ),
    "T5: x in its own dtype": (
        lambda x, w: (
            w * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)
        ),
        {"casting_mode": "llama"},
    ),
}


@each_dtype
@pytest.mark.parametrize("form", FORMS)
def test_roundings(form: str, dtype: torch.dtype) -> None:
    norm, options = FORMS[form]
    x, w = inputs(dtype)
    graph = rewritten(norm, x, w)
    assert ops_of(graph) == {"rms_norm": 1}
    if dtype == torch.float32:
        options = {name: value for name, value in options.items() if name != "casting_mode"}
    assert options_in(graph) == options
    assert torch.equal(run(graph, x, w), rms_norm(x, w, EPS, **options))
    assert (run(graph, x, w) != norm(x, w)).float().mean() < (
        0.6 if dtype == torch.float32 else 2e-3
    )


@each_dtype
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=type_id)
def test_a_weight_of_another_dtype(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, w = inputs(dtype, weight_dtype)
    graph = rewritten(lambda x, w: (normalized(x.float()) * w.float()).to(x.dtype), x, w)
    assert torch.equal(run(graph, x, w), rms_norm(x, w, EPS))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=type_id)
def test_a_weight_that_is_rounded_after_its_offset(dtype: torch.dtype) -> None:
    """Then the sum is the weight."""
    x, w = inputs(dtype)
    graph = rewritten(lambda x, w: (normalized(x.float()) * (1 + w).float()).to(x.dtype), x, w)
    assert options_in(graph) == {}
    assert torch.equal(run(graph, x, w), rms_norm(x, 1 + w, EPS))


@each_dtype
def test_no_weight(dtype: torch.dtype) -> None:
    x, _ = inputs(dtype)
    graph = rewritten(lambda x: normalized(x.float()).to(x.dtype), x)
    assert ops_of(graph) == {"rms_norm": 1}
    assert torch.equal(run(graph, x), rms_norm(x, None, EPS))


@each_dtype
@pytest.mark.parametrize("eps", [EPS, None])
@pytest.mark.parametrize("has_weight", [True, False])
def test_pytorchs_own(dtype: torch.dtype, eps: float | None, has_weight: bool) -> None:
    def norm(x: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, (DIM,), w if has_weight else None, eps)

    x, w = inputs(dtype)
    graph = rewritten(norm, x, w)
    assert ops_of(graph) == {"rms_norm": 1}
    assert torch.equal(run(graph, x, w), rms_norm(x, w if has_weight else None, eps))


# Before PyTorch 2.9 it had another signature, and one result.
two_results = pytest.mark.skipif(
    len(torch.ops.aten._fused_rms_norm.default._schema.returns) < 2,
    reason="aten._fused_rms_norm of this PyTorch has one result",
)


@two_results
@each_dtype
def test_fused_rms_norm(dtype: torch.dtype) -> None:
    """As it stands in graphs on MPS."""
    x, w = inputs(dtype)
    graph = rewritten(lambda x, w: torch.ops.aten._fused_rms_norm(x, [DIM], w, EPS)[0], x, w)
    assert ops_of(graph) == {"rms_norm": 1}
    assert torch.equal(run(graph, x, w), rms_norm(x, w, EPS))


@two_results
def test_inverse_rms_that_is_wanted_as_well() -> None:
    graph = rewritten(
        lambda x, w: torch.ops.aten._fused_rms_norm(x, [DIM], w, EPS), *inputs(DTYPES[1])
    )
    assert ops_of(graph) == {}


def mean_of(x: Tensor, dim: Any = -1) -> Tensor:
    return x.pow(2).mean(dim, keepdim=True)


def in_float32(norm: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, w: norm(x.float(), w.float()).to(x.dtype)


NEAR_MISSES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "mean over another dim": in_float32(lambda x, w: x * torch.rsqrt(mean_of(x, 1) + EPS) * w),
    "mean over two dims": in_float32(lambda x, w: x * torch.rsqrt(mean_of(x, (1, 2)) + EPS) * w),
    "mean over all": in_float32(lambda x, w: x * torch.rsqrt(x.pow(2).mean() + EPS) * w),
    "eps outside the root": in_float32(lambda x, w: x * (torch.rsqrt(mean_of(x)) + EPS) * w),
    "eps beside the root": in_float32(lambda x, w: x / (torch.sqrt(mean_of(x)) + EPS) * w),
    "eps that is a tensor": in_float32(lambda x, w: x * torch.rsqrt(mean_of(x) + w[:1]) * w),
    "eps subtracted": in_float32(lambda x, w: x * torch.rsqrt(mean_of(x) - EPS) * w),
    "eps with a factor": in_float32(
        lambda x, w: x * torch.rsqrt(torch.add(mean_of(x), 1, alpha=2)) * w
    ),
    "squares of another tensor": in_float32(lambda x, w: x * torch.rsqrt(mean_of(x + 1) + EPS) * w),
    "squares of rounded values": lambda x, w: (
        x * torch.rsqrt(mean_of((x / 3).to(torch.bfloat16).float()) + EPS) * w
    ).to(x.dtype),
    "another power": in_float32(lambda x, w: x * torch.rsqrt(x.pow(4).mean(-1, True) + EPS) * w),
    "product of two tensors": in_float32(
        lambda x, w: x * torch.rsqrt((x * (x + 1)).mean(-1, True) + EPS) * w
    ),
    "another root": in_float32(lambda x, w: x * torch.pow(mean_of(x) + EPS, -0.25) * w),
    "times the root": in_float32(lambda x, w: x * torch.sqrt(mean_of(x) + EPS) * w),
    "root over x": in_float32(lambda x, w: torch.sqrt(mean_of(x) + EPS) / x * w),
    "another scale of the mean": in_float32(
        lambda x, w: x * torch.rsqrt(mean_of(x) * 0.5 + EPS) * w
    ),
    "a sum": in_float32(lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, True) + EPS) * w),
    "a sum over dim - 1": in_float32(
        lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, True) / (DIM - 1) + EPS) * w
    ),
    "layer norm": in_float32(lambda x, w: torch.nn.functional.layer_norm(x, (DIM,), w)),
    "layer norm by hand": in_float32(
        lambda x, w: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + EPS) * w
    ),
    "layer norm in float32, x beside it": in_float32(
        lambda x, w: x * torch.rsqrt(mean_of(x - x.mean(-1, keepdim=True)) + EPS) * w
    ),
    "in 16 bits": lambda x, w: x * torch.rsqrt(mean_of(x) + EPS) * w,
    "root rounded": lambda x, w: x * torch.rsqrt(mean_of(x.float()) + EPS).to(x.dtype) * w,
    "mean rounded": lambda x, w: (
        x.float() * torch.rsqrt(mean_of(x.float()).to(x.dtype).float() + EPS) * w
    ).to(x.dtype),
    "result in float32": lambda x, w: normalized(x.float()) * w.float(),
    "result in float64": lambda x, w: (normalized(x.float()) * w.float()).double(),
    "result rounded to another dtype": lambda x, w: (normalized(x.float()) * w.float()).to(
        torch.float16
    ),
    "result in two dtypes": lambda x, w: (
        (y := normalized(x.float()) * w.float()).to(x.dtype),
        y + 1,
    ),
    "float64": lambda x, w: normalized(x.double()).to(x.dtype),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(name: str) -> None:
    function, (x, w) = NEAR_MISSES[name], inputs(torch.bfloat16)
    graph = rewritten(function, x, w)
    assert ops_of(graph) == {}
    torch.testing.assert_close(run(graph, x, w), function(x, w), rtol=0, atol=0)


def test_other_users_of_what_a_norm_is_made_of() -> None:
    """x in float32 is wanted beside the norm; that does not keep the norm."""

    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = x.float()
        return (normalized(y) * w).to(x.dtype), y * 2

    x, w = inputs(torch.bfloat16)
    graph = rewritten(both, x, w)
    assert ops_of(graph) == {"rms_norm": 1}
    assert torch.equal(run(graph, x, w)[1], x.float() * 2)


def test_one_product_with_several_weights() -> None:
    def several(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = normalized(x.float())
        return (n * w).to(x.dtype), n.to(x.dtype), w * n.to(x.dtype)

    x, w = inputs(torch.bfloat16)
    graph = rewritten(several, x, w)
    assert "rsqrt" not in graph.code
    expected = (
        rms_norm(x, w, EPS),
        rms_norm(x, None, EPS),
        rms_norm(x, w, EPS, casting_mode="llama"),
    )
    assert all(map(torch.equal, run(graph, x, w), expected))


@pytest.mark.parametrize("shape", [(DIM,), (3, DIM), (2, 3, 4, DIM)], ids=str)
def test_ranks(shape: tuple[int, ...]) -> None:
    x, w = randn(*shape, dtype=torch.bfloat16), randn(DIM, dtype=torch.bfloat16)
    graph = rewritten(FORMS["llama"][0], x, w)
    assert ops_of(graph) == {"rms_norm": 1}
    assert torch.equal(run(graph, x, w), rms_norm(x, w, EPS, casting_mode="llama"))


@pytest.mark.parametrize("shape", [(1, 1, DIM), (5, DIM), (1, DIM)], ids=str)
@pytest.mark.parametrize("form", ["llama", "gemma"])
def test_weights_that_broadcast(shape: tuple[int, ...], form: str) -> None:
    """One for each head, for example."""
    norm, options = FORMS[form]
    x, w = randn(2, 5, DIM, dtype=torch.bfloat16), randn(*shape, dtype=torch.bfloat16)
    graph = rewritten(norm, x, w)
    assert ops_of(graph) == {"rms_norm": 1}
    assert torch.equal(run(graph, x, w), rms_norm(x, w, EPS, **options))


def test_a_weight_that_is_no_row() -> None:
    """A matrix multiplies after the norm."""
    x, w = randn(5, DIM), randn(5, DIM)
    graph = rewritten(lambda x, w: normalized(x) * w, x, w)
    assert sum(ops_of(graph).values()) == 1
    assert torch.equal(run(graph, x, w), rms_norm(x, None, EPS) * w)


def test_views_of_results() -> None:
    """Results are contiguous, those of the chain had the strides of x."""

    def heads(x: Tensor, w: Tensor) -> Tensor:
        y = FORMS["llama"][0](x.transpose(1, 2), w).transpose(1, 2)
        return torch.ops.aten.view(y, [2, 5, 4 * DIM])

    x, w = randn(2, 5, 4, DIM, dtype=torch.bfloat16), randn(DIM, dtype=torch.bfloat16)
    graph = rewritten(heads, x, w)
    assert ops_of(graph) == {"rms_norm": 1}
    expected = rms_norm(x, w, EPS, casting_mode="llama").reshape(2, 5, 4 * DIM)
    assert torch.equal(run(graph, x, w), expected)


def test_as_strided() -> None:
    """Its values depend on strides, so nothing may change them."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return torch.as_strided(FORMS["llama"][0](x.transpose(0, 1), w), (3,), (1,))

    x, w = randn(2, 5, DIM), randn(DIM)
    graph = rewritten(function, x, w)
    assert torch.equal(run(graph, x, w), function(x, w))


def after_the_root(x: Tensor, w: Tensor) -> Tensor:
    y = normalized(x)
    x.copy_(w)
    return y * w


def after_the_squares(x: Tensor, w: Tensor) -> Tensor:
    mean = x.float().pow(2).mean(-1, keepdim=True)
    x.mul_(2)
    return (x.float() * torch.rsqrt(mean + EPS)).to(x.dtype)


def before_the_product(x: Tensor, w: Tensor) -> Tensor:
    y = x.float()
    x.mul_(2)
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def after_the_norm(x: Tensor, w: Tensor) -> Tensor:
    y = FORMS["gemma"][0](x, w[0])
    x.mul_(2)
    return w + y


@pytest.mark.parametrize(
    "function", [after_the_root, after_the_squares, before_the_product, after_the_norm]
)
@each_dtype
def test_what_is_written_between(
    function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    """What an operator reads is what the model read, also in a graph that is not functional."""
    x, w = randn(5, DIM, dtype=dtype), randn(DIM, dtype=dtype)
    if function is after_the_norm:
        w = w.expand(5, DIM).clone()
    graph = make_fx(function, tracing_mode="fake")(x, w)
    rewrite_graph(graph.graph)
    graph.recompile()
    torch.testing.assert_close(graph(x.clone(), w), function(x.clone(), w))
    # float32 is no copy: there the product has what is written, as the squares have.
    same = function is before_the_product and dtype == torch.float32
    assert ops_of(graph) == ({"rms_norm": 1} if same or function is after_the_norm else {})


def test_any_number_of_rows() -> None:
    """Symbols stay symbols."""
    x, w = inputs(torch.bfloat16)
    norm = of_any_rows(FORMS["llama"][0], x, w)
    with torch.no_grad():
        assert dict(report(norm, x, w)) == {"rms_norm": 1}
        for rows in (2, 7):
            x = randn(2, rows, DIM, dtype=torch.bfloat16)
            with torch.compiler.set_stance("fail_on_recompile"):
                assert torch.equal(norm(x, w), rms_norm(x, w, EPS, casting_mode="llama"))
