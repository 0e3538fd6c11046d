"""Errors of arguments: the same type and text on cpu, mps and meta."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from ops import Call, Op, Role, each_op, each_op_that
from torch import Tensor

import torch_mlxnorm

Make = Callable[[Call], object]


def replaced(name: str, *shape: int, dtype: torch.dtype = torch.float16) -> Make:
    """The call with one tensor replaced."""

    def make(call: Call) -> object:
        device = call[call.op.first].device
        return call.having(**{name: torch.ones(shape, dtype=dtype, device=device)})()

    return make


def out_replaced(i: int, out: Callable[[Tensor], Tensor]) -> Make:
    def make(call: Call) -> object:
        outs = list(call.empty_outs())
        outs[i] = out(outs[i])
        return call(out=outs)

    return make


@dataclass(frozen=True)
class Mistake:
    what: str
    error: type[Exception]
    text: str
    make: Make


def mistakes(op: Op) -> Iterator[Mistake]:
    """What may be wrong with a call of two rows, dim 8 and three experts, in float16."""
    if op.has_channels:
        yield from mistakes_of_channels(op)
        return
    first, role = op.first, op.tensors[op.first].role
    shapes: dict[Role, tuple[int, ...]] = {
        "input": (2, 8),
        "residual": (2, 8),
        "experts": (2, 3, 8),
    }
    shapes |= {"weight": (8,), "scale": (8,), "bias": (8,), "routing_weights": (2, 3)}
    shapes |= {"angles": (2, 4)}
    like = f"{first} without top_k" if role == "experts" else f"as {first}"

    def of(name: str, *wrong: int, expected: str, got: object = None) -> Mistake:
        got = f"got {list(wrong)}" if got is None else f"got {got}"
        text = f"{name} must have {expected}, {got}"
        return Mistake(f"{name}: {wrong}", RuntimeError, text, replaced(name, *wrong))

    def of_type(name: str, dtype: torch.dtype, expected: str) -> Mistake:
        kind = str(dtype).removeprefix("torch.")
        make = replaced(name, *shapes[op.tensors[name].role], dtype=dtype)
        return Mistake(f"{name}: {kind}", TypeError, f"{name} must be {expected}, got {kind}", make)

    for dtype in (torch.int64, torch.int32):
        yield of_type(first, dtype, "float32, float16 or bfloat16")
    yield of(first, expected="at least 1 dimension", got="a 0-d tensor")
    empty = (2, 3, 0) if role == "experts" else (2, 0)
    at_least_1 = "a last dimension of at least 1"
    yield of(first, *empty, expected=at_least_1, got=f"shape {list(empty)}")
    if role == "experts":
        yield of(first, 8, expected="at least 2 dimensions", got="shape [8]")
        at_least_1 = "a top_k dimension of at least 1"
        yield of(first, 2, 0, 8, expected=at_least_1, got="shape [2, 0, 8]")

    for name in op.inputs:
        if name != first:
            if op.tensors[name].role == "residual":
                yield of_type(name, torch.bfloat16, f"float16 (as {first}) or float32")
            else:
                yield of_type(name, torch.float32, f"float16 (as {first})")
            wrongs = [(2, 9), (3, 8), (1, 8), (8,), (16,), (1, 2, 8)]
            expected = f"shape [2, 8] ({like})"
            if op.has_segments:
                wrongs = [(2, 9), (3, 9), (8,), (16,), (1, 2, 8)]
                expected += " but for one dimension before the last"
            for wrong in wrongs:
                yield of(name, *wrong, expected=expected)
    for name in op.operands:
        for dtype in (torch.int16, torch.int32):
            yield of_type(name, dtype, "float32, float16 or bfloat16")
    for name in op.broadcasting_rows:
        scalar = op.tensors[name].role == "scale"
        expected = "1 element, or " if scalar else ""
        as_first = f"as {op.compared_with(name)}" if op.has_segments else like
        expected += f"a last dimension of 8 and a shape that broadcasts to [2, 8] ({as_first})"
        # Of dim elements, or one for each row, whether or not PyTorch would broadcast them.
        columns = [(8, 1), (1, 8, 1), (2, 4), (2, 1), (2, 1, 1)]
        ones: list[tuple[int, ...]] = [] if scalar else [(), (1,), (1, 1)]
        for wrong in (*columns, *ones, (3,), (2, 9), (16,), (3, 8), (2, 1, 8), (0,), (0, 8)):
            yield of(name, *wrong, expected=expected, got=f"shape {list(wrong)}")
    for name in op.named("routing_weights"):
        for wrong in ((2, 4), (3,), (2, 3, 1)):
            yield of(name, *wrong, expected=f"shape [2, 3] ({first}.shape[:-1])")
    for name in op.named("angles"):
        yield from wrong_angles(op, name)

    text = 'casting_mode must be "gemma" or "llama", got "qwen"'
    make = lambda call: call.under(casting_mode="qwen")()  # noqa: E731
    yield Mistake("casting_mode", ValueError, text, make)
    if op.activates:
        text = 'activation must be "none", "silu", "gelu_tanh" or "sigmoid", got "relu"'
        make = lambda call: call.under(activation="relu")()  # noqa: E731
        yield Mistake("activation", ValueError, text, make)

    if op.gates:
        for wrong in (3, 16, -8):
            text = f"group_size must be 0, or divide the last dimension of x, 8, got {wrong}"
            make = lambda call, wrong=wrong: call.under(group_size=wrong)()  # noqa: E731
            yield Mistake(f"group_size: {wrong}", RuntimeError, text, make)

    if op.rotates:
        text = 'rope_rounding must be "once", "products" or "addcmul", got "twice"'
        make = lambda call: call.under(rope_rounding="twice")()  # noqa: E731
        yield Mistake("rope_rounding", ValueError, text, make)
        yield from wrong_heads(op)

    if op.modulates:
        text = 'modulation must be "steps", "addcmul" or "once", got "fused"'
        make = lambda call: call.under(modulation="fused")()  # noqa: E731
        yield Mistake("modulation", ValueError, text, make)

    if op.adds_a_branch:
        text = 'gate_activation must be "none", "tanh" or "sigmoid", got "silu"'
        make = lambda call: call.under(gate_activation="silu")()  # noqa: E731
        yield Mistake("gate_activation", ValueError, text, make)

    for i, name in enumerate(op.results):
        like = f"as {op.likes[name]}"
        like = f"{first} without top_k" if op.likes[name] == first and role == "experts" else like
        text = f"{name} must be float16 (as {op.likes[name]}), got float32"
        yield Mistake(f"{name}: float32", TypeError, text, out_replaced(i, Tensor.float))
        for wrong in ((2, 9), (16,)):
            text = f"{name} must have shape [2, 8] ({like}), got {list(wrong)}"
            make = out_replaced(i, lambda out, wrong=wrong: out.new_empty(wrong))
            yield Mistake(f"{name}: {wrong}", RuntimeError, text, make)
        for what, strides, text in (
            ("transposed", (1, 2), "a last dimension of stride 1"),
            ("expanded", (0, 1), "an address for each element"),
            ("overlapping", (7, 1), "an address for each element"),
        ):
            text = f"{name} must have {text}, got strides {list(strides)} for shape [2, 8]"
            make = out_replaced(i, lambda out, s=strides: out.new_empty(16).as_strided((2, 8), s))
            yield Mistake(f"{name}: {what}", RuntimeError, text, make)


def mistakes_of_channels(op: Op) -> Iterator[Mistake]:
    """Beside [2, 8]."""

    def wrong(name: str, shape: tuple[int, ...], expected: str) -> Mistake:
        text = f"{name} must have {expected}, got shape {list(shape)}"
        return Mistake(f"{name}: {shape}", RuntimeError, text, of_shape(name, shape))

    def of_shape(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> Make:
        def make(call: Call) -> object:
            given = call.given() | {name: torch.ones(shape, dtype=dtype, device=call["x"].device)}
            return torch_mlxnorm.channel_rms_norm(**given, **call.options)

        return make

    for name, shape in (("x", (2, 8)), ("gamma", (8,)), ("bias", (8, 1))):
        for dtype in (torch.int64, torch.int16):
            kind = str(dtype).removeprefix("torch.")
            text = f"{name} must be float32, float16 or bfloat16, got {kind}"
            yield Mistake(f"{name}: {kind}", TypeError, text, of_shape(name, shape, dtype))
    for shape in ((), (8,)):
        yield wrong("x", shape, "at least 2 dimensions, [N, C, ...]")
    for shape in ((2, 0), (2, 0, 3)):
        yield wrong("x", shape, "a dimension 1 of at least 1")
    fits = "shape [8], or an element for each channel in a shape that broadcasts to [2, 8] (as x)"
    for name in ("gamma", "bias"):
        for shape in ((), (1,), (7,), (16,), (8, 1), (2, 1), (3, 8), (2, 9), (1, 2, 8), (0,)):
            yield wrong(name, shape, fits)
    for option, value, names in (
        ("casting_mode", "qwen", '"gemma" or "llama"'),
        ("form", "l2", '"rms", "rms_steps", "normalize" or "normalize_float32"'),
    ):
        make = lambda call, o=option, v=value: call.under(**{o: v})()  # noqa: E731
        text = f'{option} must be {names}, got "{value}"'
        yield Mistake(option, ValueError, text, make)
    yield Mistake(
        "out: float32",
        TypeError,
        "out must be float16 (as x), got float32",
        out_replaced(0, Tensor.float),
    )
    for shape in ((2, 9), (3, 8)):
        text = f"out must have shape [2, 8] (as x), got {list(shape)}"
        make = out_replaced(0, lambda out, shape=shape: out.new_empty(shape))
        yield Mistake(f"out: {shape}", RuntimeError, text, make)
    for strides in ((0, 1), (7, 1), (1, 0)):
        text = f"out must have an address for each element, got strides {list(strides)} for shape"
        make = out_replaced(0, lambda out, s=strides: out.new_empty(16).as_strided((2, 8), s))
        yield Mistake(f"out: {strides}", RuntimeError, f"{text} [2, 8]", make)


def wrong_heads(op: Op) -> Iterator[Mistake]:
    """Of what is normalized across heads, beside rows [2, 8] for two of them."""
    first, weight = op.first, op.named("weight")[0]

    def mistake(what: str, text: str, i: int | None = None, **shapes: tuple[int, ...]) -> Mistake:
        def make(call: Call) -> object:
            like = call[first]
            tensors = {weight: like.new_ones(16)}
            tensors |= {name: like.new_ones(shape) for name, shape in shapes.items()}
            across = call.under(across_heads=True).having(**tensors)
            outs = list(call.empty_outs())
            outs[0] = torch.empty(2, 16, dtype=like.dtype, device=like.device)[:, :8]
            return across(out=outs) if i is not None else across()

        return Mistake(what, RuntimeError, text, make)

    shape = "heads and theirs (across_heads), got shape [8]"
    yield mistake("one head", f"{first} must have at least 2 dimensions, {shape}", **{first: (8,)})
    text = f"{first} must have at least 1 head (across_heads), got shape [0, 8]"
    yield mistake("no head", text, **{first: (0, 8)})
    text = f"{weight} must have a last dimension of 16 and a shape that broadcasts to [16] (as "
    text += f"{first}, its heads one row), got shape [8]"
    yield mistake("weight of one head", text, **{weight: (8,)})
    others = {name: (16,) for name in op.named("weight")}
    text = f"{op.results[0]} must have heads one after another (across_heads), got strides [16, 1] "
    yield mistake("heads apart", text + "for shape [2, 8]", 0, **others)


def wrong_angles(op: Op, name: str) -> Iterator[Mistake]:
    """Beside rows [2, 8] and other angles [2, 4]."""
    for full, wrong in itertools.chain(
        ((False, shape) for shape in ((3, 4), (2, 1, 4), (0, 4))),
        ((True, shape) for shape in ((2, 9), (2, 3), (3, 4), (2, 1, 8))),
        ((False, shape) for shape in ((2, 5), (3, 8), (2, 10))),  # wider than half a row
    ):
        most = "an even last dimension of" if full or wrong[-1] > 4 else "a last dimension of"
        most += " at most 8" if most.startswith("an") else " at most half of 8"
        text = f"{name} must have {most} and leading dimensions that broadcast to those of [2, 8] "
        text += f"(as {op.first}), got shape "

        def make(call: Call, full: bool = full, wrong: tuple[int, ...] = wrong) -> object:
            device = call[op.first].device
            return call.having(**{name: torch.ones(wrong, device=device)}).under(full_tables=full)()

        yield Mistake(f"{name}: {wrong}", RuntimeError, text + str(list(wrong)), make)
    text = f"{name} must have at least 1 dimension, got a 0-d tensor"
    yield Mistake(f"{name}: 0-d", RuntimeError, text, replaced(name))
    first, *others = op.named("angles")
    if name in others:
        text = f"{name} must have a last dimension of 4 (as {first}), got shape [2, 3]"
        yield Mistake(f"{name}: too few", RuntimeError, text, replaced(name, 2, 3))


@each_op
def test_errors(where: str, op: Op, subtests: pytest.Subtests) -> None:
    call = op.call((2,), 8, torch.float16, where)
    for mistake in mistakes(op):
        with subtests.test(mistake.what):
            with pytest.raises(mistake.error) as raised:
                mistake.make(call)
            assert type(raised.value) is mistake.error
            assert str(raised.value).splitlines()[0] == f"mlxnorm::{op.name}: {mistake.text}"


@each_op_that(lambda op: op.named("scale"))
def test_a_factor_for_each_row_is_no_scale(where: str, op: Op) -> None:
    """Not where there are dim rows, either."""
    call = op.call((8,), 8, torch.float32, where)
    for name, shape in itertools.product(op.named("scale"), ((8, 1), (1, 8, 1))):
        wrong = call.having(**{name: torch.ones(shape, device=where)})
        for outs in (None, call.empty_outs()):
            with pytest.raises(RuntimeError, match=f"{op.name}: {name} must have 1 element, or"):
                wrong(out=outs)


NAMES = {"cpu": "cpu", "mps": "mps:0", "meta": "meta"}


@pytest.mark.parametrize(("here", "there"), list(itertools.permutations(NAMES, 2)))
@each_op
def test_error_for_another_device(mps: str, op: Op, here: str, there: str) -> None:
    call = op.call((2,), 8, torch.float32, here)

    def assert_raises(name: str, wrong: Call, like: str, outs: list[Tensor] | None = None) -> None:
        with pytest.raises(RuntimeError) as raised:
            wrong(out=outs)
        expected = f"{name} must be on {NAMES[here]} (as {like}), got {NAMES[there]}"
        assert str(raised.value).splitlines()[0] == f"mlxnorm::{op.name}: {expected}"

    for name in list(op.tensors)[1:]:
        wrong = call.mapped(lambda t: torch.ones(t.shape, device=there), [name])
        assert_raises(name, wrong, op.compared_with(name))
    for i, name in enumerate(op.results):
        outs = list(call.empty_outs())
        outs[i] = torch.empty(outs[i].shape, device=there)
        assert_raises(name, call, op.likes[name], outs)


@each_op
def test_errors_leave_out_alone(device: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float32, device)
    outs = [torch.full_like(out, 7.0) for out in call.empty_outs()]
    with pytest.raises(ValueError, match="casting_mode"):
        call.under(casting_mode="")(out=outs)
    assert all(out.eq(7.0).all() for out in outs)
