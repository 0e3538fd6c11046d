"""torch.vmap and other transforms of torch.func; autocast."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping

import pytest
import torch
from ops import OPS, Call, Op, ScaleKind, assert_all_same_bits, each_op, each_op_that, function_of
from tensors import randn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BATCH = 3


def vmapped(call: Call, dims: Mapping[str, int | None]) -> tuple[Tensor, ...]:
    """Over the tensors with a dim, which they have besides those of the call."""
    names, function = list(call.tensors), function_of(call)

    def one(*tensors: Tensor | None) -> tuple[Tensor, ...]:
        return function(dict(zip(names, tensors, strict=True)))

    in_dims = tuple(dims.get(name) for name in names)
    return torch.vmap(one, in_dims=in_dims)(*call.tensors.values())


def looped(call: Call, dims: Mapping[str, int | None]) -> list[Tensor]:
    each = []
    for i in range(BATCH):
        slices = {n: call[n].select(d, i) for n, d in dims.items() if d is not None}
        each.append(call.having(**slices)())
    return [torch.stack(results) for results in zip(*each, strict=True)]


def batched(call: Call, dims: Mapping[str, int | None]) -> Call:
    """With a batch dimension in those tensors."""

    def batch(name: str, dim: int) -> Tensor:
        t = call[name]
        copies = [t * (i + 1) / 2 for i in range(BATCH)]
        return torch.stack(copies, dim)

    return call.having(**{n: batch(n, d) for n, d in dims.items() if d is not None})


class CountOps(TorchDispatchMode):
    """Calls of mlxnorm ops that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += func.namespace == "mlxnorm"
        return func(*args, **(kwargs or {}))


def assert_folded(call: Call, dims: Mapping[str, int | None]) -> None:
    with CountOps() as count:
        results = vmapped(call, dims)
    assert count.calls == 1
    assert_all_same_bits(results, looped(call, dims))


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)], ids=str)
@each_op
def test_vmap_folds_the_batch_into_the_rows(device: str, op: Op, leading: tuple[int, ...]) -> None:
    for scale in op.scale_kinds:
        call = op.call(leading, 24, torch.float16, device, scale=scale)
        everything: dict[str, int | None] = dict.fromkeys(call.rowwise, 0)
        assert_folded(batched(call, everything), everything)
        for name in call.rowwise:  # the others are the same for all
            alone: dict[str, int | None] = {name: 0}
            assert_folded(batched(call, alone), alone)
        if leading:
            elsewhere: dict[str, int | None] = dict.fromkeys(call.rowwise, 1)
            assert_folded(batched(call, elsewhere), elsewhere)


@each_op
def test_vmap_over_what_rows_share(device: str, op: Op) -> None:
    for scale in op.scale_kinds[:2]:
        call = op.call((4,), 24, torch.float32, device, scale=scale)
        for name in op.broadcasting_rows:
            for rows in ([], op.inputs[:1]):
                dims: dict[str, int | None] = {name: 0, **dict.fromkeys(rows, 0)}
                assert_folded(batched(call, dims), dims)


@pytest.mark.parametrize(
    "shape", [(24,), (1, 24), (3, 24), (2, 1, 24), (1, 3, 24), (1, 1, 1, 24)], ids=str
)
@each_op_that(lambda op: op.broadcasting)
def test_vmap_over_what_is_broadcast(device: str, op: Op, shape: tuple[int, ...]) -> None:
    names = op.broadcasting
    shapes = {name: (*shape[:-1], op.columns(name, shape[-1])) for name in names}
    call = op.call((2, 3), 24, torch.float32, device, shapes=shapes)
    for dim in [None, *range(len(shape) + 1)]:
        for others in ([], op.inputs, names):
            dims: dict[str, int | None] = dict.fromkeys(others, 0) | {names[0]: dim}
            if any(d is not None for d in dims.values()):
                assert_folded(batched(call, dims), dims)


@each_op_that(lambda op: op.rotates)
def test_vmap_over_one_angle(device: str, op: Op) -> None:
    """Of one pair: not of all elements, as one element of a scale is."""
    names = op.named("angles")
    call = op.call((4,), 6, torch.float32, device, shapes=dict.fromkeys(names, (1,)))
    for others in ([], op.inputs):
        dims: dict[str, int | None] = dict.fromkeys((*names, *others), 0)
        assert_folded(batched(call, dims), dims)


@each_op
def test_vmap_does_not_broadcast_to_the_batch(op: Op) -> None:
    for name in op.broadcasting:
        call = op.call((4,), 24, shapes={name: (BATCH, 4, op.columns(name, 24))})
        dims: dict[str, int | None] = dict.fromkeys(op.inputs, 0)
        with pytest.raises(RuntimeError, match=f"{name} must have no more dimensions than"):
            vmapped(batched(call, dims), dims)


@each_op_that(lambda op: op.optional)
def test_vmap_with_tensors_missing(device: str, op: Op) -> None:
    call = op.call((4,), 24, torch.bfloat16, device, missing=op.optional, weight_offset=1.0)
    call = call.with_wide_residual()
    dims: dict[str, int | None] = dict.fromkeys(call.rowwise, 0)
    assert_folded(batched(call, dims), dims)


@each_op
def test_vmap_in_vmap(device: str, op: Op) -> None:
    call = op.call((2, 3, 4), 24, torch.float32, device)
    names = [name for name in call.rowwise if name in op.tensors]

    def one(*tensors: Tensor) -> tuple[Tensor, ...]:
        return call.having(**dict(zip(names, tensors, strict=True)))()

    results = torch.vmap(torch.vmap(one))(*(call[name] for name in names))
    assert_all_same_bits(results, call())


@each_op
def test_vmap_of_out(device: str, op: Op) -> None:
    call = op.call((4,), 24, torch.float32, device)
    dims: dict[str, int | None] = dict.fromkeys(call.rowwise, 0)
    many = batched(call, dims)
    names = list(dims)
    outs = [torch.zeros(BATCH, *call.shape, device=device) for _ in op.results]
    count = len(outs)

    def one(*given: Tensor) -> tuple[Tensor, ...]:
        tensors = dict(zip(names, given[count:], strict=True))
        return call.having(**tensors)(out=given[:count])

    results = torch.vmap(one)(*outs, *(many[name] for name in names))
    expected = looped(many, dims)
    assert_all_same_bits(results, expected)
    assert_all_same_bits(outs, expected)

    captured = call.empty_outs()
    with pytest.raises(RuntimeError, match=f"{op.results[0]} must be batched, as an input is"):
        torch.vmap(lambda *given: one(*captured, *given))(*(many[name] for name in names))


@each_op
def test_vmap_of_an_empty_batch(device: str, op: Op) -> None:
    call = op.call((4,), 24, torch.float32, device)
    for name in (op.first, *op.broadcasting_rows):
        none = torch.empty(0, *call[name].shape, device=device)
        results = torch.vmap(lambda t, name=name: call.having(**{name: t})())(none)
        assert all(r.shape == (0, *call.shape) for r in results)


@each_op
def test_vmap_compiles(device: str, op: Op) -> None:
    call = op.call((4,), 24, torch.float32, device)
    dims: dict[str, int | None] = dict.fromkeys(call.rowwise, 0)
    many = batched(call, dims)
    torch._dynamo.reset()
    names, function = list(dims), function_of(many)
    shared = {name: t for name, t in many.tensors.items() if name not in dims}

    def model(*tensors: Tensor) -> tuple[Tensor, ...]:
        return function({**shared, **dict(zip(names, tensors, strict=True))})

    compiled = torch.compile(torch.vmap(model), backend="aot_eager", fullgraph=True)
    assert_all_same_bits(compiled(*(many[name] for name in names)), vmapped(many, dims))


@each_op
def test_functionalize(device: str, op: Op) -> None:
    """PyTorch functionalizes no `.out` of a custom op here; it says so, and nothing breaks."""
    call = op.call((4,), 24, torch.float32, device)
    results = torch.func.functionalize(lambda t: call.having(**{op.first: t})())(call[op.first])
    assert_all_same_bits(results, call())
    outs = call.empty_outs()
    with pytest.raises(RuntimeError, match=f"mlxnorm::{op.name}"):
        torch.func.functionalize(lambda t: call.having(**{op.first: t})(out=outs))(call[op.first])
    assert_all_same_bits(call(out=outs), results)


# ---- autocast ------------------------------------------------------------------------------------

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def autocast(device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16)


@pytest.mark.mps
@each_op_that(lambda op: len(op.activations) > 1)
def test_autocast_promotes_activations(device: str, op: Op) -> None:
    """To the widest dtype among them, as PyTorch's promoting ops do. A float32 residual is taken as
    it is."""
    names = op.activations
    for dtypes in itertools.product([F32, BF16, F16], repeat=len(names)):
        call = op.call((4,), 24, torch.float32, device)
        for name, dtype in zip(names, dtypes, strict=True):
            call = call.mapped(lambda t, dtype=dtype: t.to(dtype), [name])
        promoted = [n for n in names if n not in op.residuals or call[n].dtype != F32]
        kinds = {call[name].dtype for name in promoted}
        widest = F32 if len(kinds) > 1 else kinds.pop()
        operands = call.mapped(lambda t, widest=widest: t.to(widest), promoted)
        with autocast(device):
            results = call()
            assert_all_same_bits(results, operands())
            outs = operands.empty_outs()
            assert_all_same_bits(call(out=outs), results)
        assert [result.dtype for result in results] == operands.result_dtypes
        if kinds:
            with pytest.raises(TypeError, match="must be"):
                call()


@each_op
def test_autocast_leaves_operands_and_alike_activations_alone(device: str, op: Op) -> None:
    for dtype in (F32, F16, BF16):
        call = op.call((4,), 24, dtype, device, float32="all", scale=op.scale_kinds[-1])
        expected = call()
        with autocast(device):
            assert_all_same_bits(call(), expected)


@each_op
def test_autocast_and_other_dtypes(device: str, op: Op) -> None:
    """What is refused is refused by the same text."""
    call = op.call((4,), 24, torch.float32, device).mapped(lambda t: t.int(), [op.first])
    text = f"mlxnorm::{op.name}: {op.first} must be float32, float16 or bfloat16, got int32"
    with autocast(device), pytest.raises(TypeError, match=text):
        call()


def test_autocast_of_a_model(device: str) -> None:
    """The residual stream of a float32 model stays float32, what a linear layer gives is not."""
    linear = torch.nn.Linear(24, 24, device=device)
    weight = torch.ones(24, device=device)

    def layer(h: Tensor) -> Tensor:
        out, h = OPS["add_rms_norm"].packet(linear(h), h, weight)
        return linear(out) + h

    h = randn(4, 24, device=device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = layer(h)
        with autocast(device):
            under = layer(h)
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        with autocast(device):
            assert_all_same_bits([compiled(h)], [under])
    torch.testing.assert_close(under, plain, rtol=0.05, atol=0.05)


SCALES: list[ScaleKind] = ["one", "dim", "rows"]


@pytest.mark.parametrize("scale", SCALES)
def test_autocast_keeps_the_dtype_beside_a_float32_scale(device: str, scale: ScaleKind) -> None:
    call = OPS["rms_norm_mul"].call((4,), 24, BF16, device, scale=scale, float32="all")
    with autocast(device):
        assert call()[0].dtype == BF16
