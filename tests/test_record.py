"""torch_mlxnorm.prebake, prebake_chain and RmsNormRecord."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import metal_sim
import pytest
import torch
from ops import (
    OPS,
    Call,
    Op,
    assert_all_same_bits,
    each_op,
    each_op_and_types,
    each_op_that,
)
from oracle import assert_same_bits
from tensors import DTYPES, LAYOUTS, POISON, misaligned, randn, type_id
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_mlxnorm
from torch_mlxnorm import _C, Record, RmsNormRecord, prebake, prebake_chain, rms_norm

# Each has its kernel on MPS.
DIMS = [2, 34, 128, 2816, 16384, 40000]


def poisoned(call: Call) -> tuple[Tensor, ...]:
    return tuple(torch.full_like(out, POISON) for out in call.empty_outs())


def record_and_outs(call: Call) -> tuple[Record, tuple[Tensor, ...]]:
    return call.prebaked(call.empty_outs()), poisoned(call)


# ---- bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
@each_op
def test_gives_the_bits_of_the_op(device: str, op: Op, dim: int) -> None:
    for dtype in DTYPES if dim < 3000 else DTYPES[:1]:
        call = op.call((2, 3), dim, dtype, device)
        record, outs = record_and_outs(call)
        assert_all_same_bits(call.by(record, outs), call())
        again = op.call((2, 3), dim, dtype, device, seed=1)
        assert_all_same_bits(again.by(record, outs), again())


@each_op_and_types
def test_any_operands(device: str, op: Op, dtype: torch.dtype, operands: dict[str, Any]) -> None:
    for missing in op.combinations_missing:
        call = op.call((3,), 64, dtype, device, missing=missing, **operands)
        record, outs = record_and_outs(call)
        assert_all_same_bits(call.by(record, outs), call())


@each_op
def test_options(device: str, op: Op) -> None:
    options: dict[str, Any] = {"eps": 1e-2, "weight_offset": 1.0, "casting_mode": "llama"}
    if op.rounds:
        options["round_intermediates"] = True
    if op.activates:
        options["activation"] = "sigmoid"
    if op.gates:
        options["group_size"] = 16
    if op.adds_a_branch:
        options |= {"gate_activation": "tanh", "alpha": 0.5, "beta": 2.0}
    if op.has_channels:
        options |= {"form": "normalize", "silu": True}
    call = op.call((3,), 64, torch.bfloat16, device, **options)
    record, outs = record_and_outs(call)
    assert_all_same_bits(call.by(record, outs), call())


@each_op
def test_outs_are_those_that_the_op_makes(device: str, op: Op) -> None:
    call = op.call((2, 3), 64, torch.float16, device).with_channels_apart()
    given = call.given().values()
    record = prebake(getattr(torch_mlxnorm, op.name), *given, **call.options)
    function = getattr(torch_mlxnorm, op.name)
    results = function(**call.given(), **call.options)
    results = (results,) if isinstance(results, Tensor) else results
    outs = tuple(torch.empty_like(result) for result in results)
    record(*given, out=outs if len(outs) > 1 else outs[0])
    assert_all_same_bits(outs, results)


@each_op
def test_any_storage_offset(device: str, op: Op) -> None:
    call = op.call((4,), 128, torch.bfloat16, device)
    record, outs = record_and_outs(call)
    expected = call()
    for name in call.tensors:
        assert_all_same_bits(call.mapped(misaligned, [name]).by(record, outs), expected)
    assert_all_same_bits(call.by(record, tuple(map(misaligned, outs))), expected)


@each_op
def test_in_place(device: str, op: Op) -> None:
    call = op.call((3,), 48, torch.float16, device)
    record, expected = call.prebaked(call.empty_outs()), call()
    for i, name in op.in_place:
        overwritten = call.mapped(torch.clone, [name])
        outs = list(call.empty_outs())
        outs[i] = overwritten[name]
        version = outs[i]._version
        assert_all_same_bits(overwritten.by(record, outs), expected)
        assert outs[i]._version == version + 1


@each_op_that(lambda op: not op.has_channels and not op.has_segments)
def test_leading_dimensions_may_be_other_ones(device: str, op: Op) -> None:
    call = op.call((6,), 64, torch.float32, device)
    record, expected = call.prebaked(call.empty_outs()), call()
    for leading in [(2, 3), (1, 6), (6, 1), (3, 1, 2)]:
        other = call.with_leading(*leading)
        results = other.by(record, other.empty_outs())
        assert_all_same_bits([r.reshape(6, 64) for r in results], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_lie_anywhere(device: str, layout: str) -> None:
    x = LAYOUTS[layout](randn(2, 6, 4, 48, device=device))
    try:
        record = prebake("rms_norm", x, None)
    except RuntimeError as refusal:
        assert "would be copied at every call; make it contiguous" in str(refusal)
        assert layout in ("last dim strided", "every other element", "5-d", "6-d with ones",
                          "last dim strided, one row")  # fmt: skip
        return
    out = torch.empty(x.shape, device=device)
    record(x, None, out=out)
    assert_same_bits(out, rms_norm(x, None))
    if x.dim() > 1 and x.stride() != out.stride():
        with pytest.raises(RuntimeError, match=r"x must have strides \[.*\] as baked, got \["):
            record(x.contiguous(), None, out=out)


def test_out_is_a_slot_of_a_cache(device: str) -> None:
    x, cache = randn(2, 4, 32, device=device), torch.zeros(2, 16, 4, 32, device=device)
    record = prebake("rms_norm", x, None, out=cache[:, 3])
    for position in (3, 7):
        record(x, None, out=cache[:, position])
        assert_same_bits(cache[:, position].contiguous(), rms_norm(x, None))


def test_weights_that_broadcast(device: str) -> None:
    x = randn(5, 4, 32, device=device)
    for weight in (randn(4, 32, device=device), randn(5, 1, 32, device=device)):
        out = torch.empty_like(x)
        prebake("rms_norm", x, weight)(x, weight, out=out)
        assert_same_bits(out, rms_norm(x, weight))


@each_op
def test_no_rows(device: str, op: Op) -> None:
    call = op.call((0,), 16, torch.float32, device)
    record, outs = record_and_outs(call)
    call.by(record, outs)


def test_many_rows_past_the_caches() -> None:
    x = randn(4096, 2048)
    out = torch.empty_like(x)
    prebake("rms_norm", x, None)(x, None, out=out)
    assert_same_bits(out, rms_norm(x, None))


# ---- what a call is refused for ------------------------------------------------------------------


def refused(
    call: Call, record: Record, outs: tuple[Tensor, ...], error: type[Exception], text: str
) -> None:
    before = [out.detach().clone() for out in outs]
    with pytest.raises(error) as raised:
        call.by(record, outs)
    assert type(raised.value) is error
    assert str(raised.value).startswith(f"mlxnorm::{call.op.name} record: ")
    assert text in str(raised.value)
    for out, same in zip(outs, before, strict=True):
        assert_same_bits(out.detach(), same)


Change = Callable[[Tensor], Tensor | None]
MISFITS: dict[str, tuple[Change, type[Exception], str]] = {
    "dtype": (lambda t: t.bfloat16(), TypeError, "must be float16 as baked, got bfloat16"),
    "no float": (lambda t: t.int(), TypeError, "must be float16 as baked, got int32"),
    "shape": (lambda t: torch.cat([t, t]), RuntimeError, "must have shape ["),
    "strides": (lambda t: t.repeat_interleave(2, -1)[..., ::2], RuntimeError,
                "must have strides ["),
    "gradient": (lambda t: t.requires_grad_(), RuntimeError, "requires grad; call it under"),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
@each_op
def test_refuses_what_was_not_baked(device: str, op: Op, misfit: str) -> None:
    change, error, text = MISFITS[misfit]
    call = op.call((2,), 8, torch.float16, device)
    record, outs = record_and_outs(call)
    for name in call.tensors:
        wrong = call.mapped(lambda t: change(t.clone()), [name])
        refused(wrong, record, outs, error, f"{name} {text}" if text[0] == "m" else text)
    for i, name in enumerate(op.results):
        changed = change(outs[i].clone())
        wrong_outs = (*outs[:i], changed, *outs[i + 1 :])
        refused(call, record, wrong_outs, error, f"{name} {text}" if text[0] == "m" else text)


@each_op
def test_refuses_another_device(device: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float16, device)
    record, outs = record_and_outs(call)
    for name in call.tensors:
        wrong = call.mapped(lambda t: t.to("meta"), [name])
        refused(wrong, record, outs, RuntimeError, f"{name} must be on {device}")


@each_op
def test_refuses_missing_and_surplus_tensors(device: str, op: Op) -> None:
    whole = op.call((2,), 8, torch.float16, device)
    record, outs = record_and_outs(whole)
    for name in whole.tensors:
        wrong = whole.having(**{name: None}).given()
        with pytest.raises(RuntimeError, match=f"{name} must be a tensor as baked, got None"):
            record(*wrong.values(), out=outs if len(outs) > 1 else outs[0])
    for name in op.optional:
        without = whole.having(**{name: None}).prebaked()
        refused(whole, without, outs, RuntimeError, f"{name} must be None as baked, got a tensor")


@each_op
def test_refuses_other_counts(device: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float16, device)
    record, outs = record_and_outs(call)
    given, out = list(call.given().values()), outs if len(outs) > 1 else outs[0]
    with pytest.raises(TypeError, match=f"takes at most {len(given)} tensors"):
        record(*given, None, out=out)
    for wrong in [{}, {"outs": out}, {"out": out, "x": None}]:
        with pytest.raises(TypeError, match="takes tensors and, by keyword, out alone"):
            record(*given, **wrong)
    with pytest.raises(TypeError, match=r"must be (a tensor or None|a tuple of \d tensors), got"):
        record(*given, out=(*outs, outs[0]))
    with pytest.raises(TypeError, match=f"{op.first} must be a tensor or None, got float"):
        record(1.0, *given[1:], out=out)


@each_op
def test_refuses_overlap(device: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float16, device)
    record, outs = record_and_outs(call)
    storage = torch.ones(64, dtype=torch.float16, device=device)
    for i, name in enumerate(op.results):
        for other in call.tensors:
            shape = call[other].shape
            shared = storage[4 : 4 + shape.numel()].view(shape)
            wrong_outs = (*outs[:i], storage[:16].view(2, 8), *outs[i + 1 :])
            refused(call.having(**{other: shared}), record, wrong_outs, RuntimeError,
                    f"{name} must not share memory with {other}")  # fmt: skip
    for a, b in itertools.combinations(range(len(outs)), 2):
        wrong_outs = tuple(outs[a] if i == b else out for i, out in enumerate(outs))
        text = f"{op.results[b]} must not share memory with {op.results[a]}"
        refused(call, record, wrong_outs, RuntimeError, text)


@each_op_that(lambda op: op.has_segments)
def test_refuses_a_segment_over_another(device: str, op: Op) -> None:
    call = op.call((2,), 8, torch.float16, device)
    record, outs = record_and_outs(call)
    text = f"{op.results[0]} must not share memory with {op.inputs[1]}"
    refused(call, record, (call[op.inputs[1]], *outs[1:]), RuntimeError, text)


class Sub(Tensor):
    pass


def test_refuses_tensors_that_stand_for_others(device: str) -> None:
    """Which PyTorch's dispatcher would unwrap, or hand to Python."""
    x, out = randn(2, 8, device=device), torch.zeros(2, 8, device=device)
    record = prebake("rms_norm", x, None)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    negated = torch.ones(2, 8, dtype=torch.complex64, device="cpu").conj().imag
    assert negated.is_neg()
    for wrong in [fake, x.as_subclass(Sub), *([negated] if device == "cpu" else [])]:
        with pytest.raises(RuntimeError, match="x must be a plain tensor, got"):
            record(wrong, None, out=out)
        if not wrong.is_neg():
            with pytest.raises(RuntimeError, match="out must be a plain tensor, got"):
                record(x, None, out=wrong)

    def inside(x: Tensor) -> Tensor:
        record(x, None, out=out)
        return x

    with pytest.raises(RuntimeError, match="x must be a plain tensor, got"):
        torch.vmap(inside)(x.expand(3, 2, 8))
    assert out.eq(0.0).all()


def test_takes_parameters(device: str) -> None:
    x, weight = randn(2, 8, device=device), torch.nn.Parameter(randn(8, device=device))
    record, out = prebake("rms_norm", x, weight), torch.empty(2, 8, device=device)
    with pytest.raises(RuntimeError, match="weight requires grad; call it under torch.no_grad"):
        record(x, weight, out=out)
    with torch.no_grad():
        record(x, weight, out=out)
        assert_same_bits(out, rms_norm(x, weight))


# ---- baking --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (["layer_norm", 1], {}, ValueError, "op must be among rms_norm, rms_norm_mul"),
        ([torch.add, 1], {}, ValueError, "op must be among rms_norm"),
        (["rms_norm"], {}, TypeError, "rms_norm takes 1 to 3 tensors (x, weight, bias), got 0"),
        (["rms_norm", 1, 1, None, None], {}, TypeError, "takes 1 to 3 tensors"),
        (["rms_norm", None], {}, TypeError, "at least one tensor must be given"),
        (["rms_norm", 1], {"bias": None}, TypeError, "bias must be among the tensors, got a key"),
        (["rms_norm", 1, 1], {"casting_mode": "qwen"}, ValueError,
         'casting_mode must be "gemma" or "llama", got "qwen"'),
        (["rms_norm", 1, 1], {"cast": "gemma"}, RuntimeError, "cast"),
        (["add_rms_norm", 1], {}, TypeError, "residual must be a tensor, got None"),
    ],
)  # fmt: skip
def test_bakes_only_what_there_is(
    device: str, arguments: list[Any], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    example = torch.ones(2, 8, device=device)
    given = [example if a == 1 else a for a in arguments]
    with pytest.raises(error) as raised:
        prebake(*given, **options)
    assert text in str(raised.value)


def test_bakes_no_examples_that_do_not_go_together(device: str) -> None:
    x = torch.ones(2, 8, device=device)
    with pytest.raises(RuntimeError, match=r"prebake: weight must be on .* \(as x\), got meta"):
        prebake("rms_norm", x, torch.ones(8, device="meta"))
    with pytest.raises(NotImplementedError, match="device must be cpu or mps, got meta"):
        prebake("rms_norm", x.to("meta"), None)
    with pytest.raises(TypeError, match="x must be float32, float16 or bfloat16, got int32"):
        prebake("rms_norm", x.int(), None)
    with pytest.raises(RuntimeError, match="weight must have a last dimension of 8"):
        prebake("rms_norm", x, torch.ones(7, device=device))
    with pytest.raises(TypeError, match="weight must be a tensor, got float"):
        prebake("rms_norm", x, 1.0)
    with pytest.raises(TypeError, match="out must be 1 tensors"):
        prebake("rms_norm", x, None, out=(x, x))
    with pytest.raises(RuntimeError, match="out must have an address for each element"):
        prebake("rms_norm", x, None, out=x[:1].expand(2, 8))


def test_a_record_that_was_not_baked() -> None:
    """Made past __init__ it is an error and no crash."""
    x = torch.ones(2, 8)
    for kind in (RmsNormRecord, Record, _C.Record):
        empty = kind.__new__(kind)
        assert "Record" in repr(empty)
        arguments = (x, None, x) if kind is RmsNormRecord else (x,)
        keywords = {} if kind is RmsNormRecord else {"out": x}
        with pytest.raises(RuntimeError, match="nothing was baked"):
            empty(*arguments, **keywords)
    with pytest.raises(RuntimeError, match="nothing was baked"):
        _C.Chain.__new__(_C.Chain)()
    with pytest.raises(TypeError, match="not a"):
        _C.bake(x, "rms_norm")


def test_a_record_is_baked_once(device: str) -> None:
    record = RmsNormRecord(torch.float16, 2, 8, device=device)
    before = repr(record)
    with pytest.raises(RuntimeError, match="baked already"):
        record.__init__(torch.float32, 4, 4)
    assert repr(record) == before


# ---- RmsNormRecord -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_rms_norm_by_sizes(device: str, dtype: torch.dtype) -> None:
    x, out = randn(2, 3, 64, dtype=dtype, device=device), torch.empty(6, 64, device=device)
    out = out.to(dtype)
    weight = randn(64, device=device, seed=1)
    for options in ({}, {"eps": None, "weight_offset": 1.0, "casting_mode": "llama"}):
        record = RmsNormRecord(dtype, 6, 64, weight_dtype=torch.float32, device=device, **options)
        assert record(x, weight, out) is None
        assert_same_bits(out.view(2, 3, 64), rms_norm(x, weight, **options))
    record = RmsNormRecord(dtype, 6, 64, has_weight=False, device=device)
    record(x=x, weight=None, out=x)
    with pytest.raises(RuntimeError, match="weight must be None as baked, got a tensor"):
        record(x, weight, out)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"rows": 0}, ValueError, "rows must be at least 1"),
        ({"dim": -1}, ValueError, "dim must be at least 1"),
        ({"rows": 2**64 + 2}, ValueError, "below 2^48"),
        ({"dim": 8.0}, TypeError, "dim must be an int, got float"),
        ({"rows": True}, TypeError, "rows must be an int, got bool"),
        ({"rows": 2**47, "dim": 2**47}, RuntimeError, "overflow"),
        ({"dtype": torch.int8}, TypeError, "x must be float32, float16 or bfloat16, got int8"),
        ({"weight_dtype": torch.float64}, TypeError, "weight must be float32, float16 or bfloat16"),
        ({"device": "meta"}, NotImplementedError, "device must be cpu or mps, got meta"),
    ],
)
def test_sizes_that_are_refused(
    device: str, wrong: dict[str, Any], error: type[Exception], text: str
) -> None:
    baked = {"dtype": torch.float16, "rows": 2, "dim": 8, "device": device}
    with pytest.raises(error) as raised:
        RmsNormRecord(**baked | wrong)
    assert text in str(raised.value)


# ---- copies --------------------------------------------------------------------------------------


class Named(Record):
    name: str


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


AGAIN = pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])


@AGAIN
@each_op
def test_copies_and_pickles(device: str, op: Op, again: Callable[[Any], Any]) -> None:
    call = op.call((2,), 8, torch.float16, device, weight_offset=1.0, casting_mode="llama")
    record, outs = record_and_outs(call)
    other = again(record)
    assert type(other) is Record and other is not record
    assert repr(other) == repr(record)
    assert_all_same_bits(call.by(other, outs), call())


@AGAIN
def test_copies_have_what_a_user_added(device: str, again: Callable[[Any], Any]) -> None:
    sized = again(RmsNormRecord(torch.float16, 2, 8, device=device))
    x = randn(2, 8, dtype=torch.float16, device=device)
    sized(x, x[0].clone(), x.clone())
    assert type(sized) is RmsNormRecord
    record = prebake("rms_norm", x, None)
    record.name = "first"
    assert again(record).name == "first"


def test_repr_shows_what_was_baked() -> None:
    record = prebake("rms_norm", torch.ones(4, 8), torch.ones(8).half(), eps=None)
    assert repr(record) == (
        "Record(rms_norm, x=float32[4, 8], weight=float16[8], out=float32[4, 8], eps=None, "
        "device='cpu')"
    )


# ---- chains --------------------------------------------------------------------------------------


def chain_of_two(device: str) -> tuple[Any, list[Tensor], dict[str, Tensor]]:
    """A sum and its norm, and the norm times a scale; what is bound, and what calls bring."""
    tensors = {name: randn(2, 16, device=device, seed=i) for i, name in enumerate("xrs")}
    weight = randn(16, device=device, seed=7)
    add = prebake("add_rms_norm", tensors["x"], tensors["r"], weight)
    mul = prebake("rms_norm_mul", tensors["x"], None, tensors["s"])
    chain = prebake_chain(
        add.bind("x", "r", weight, out=("y", "r")), mul.bind("y", None, "s", out="z")
    )
    return chain, [weight], tensors


def test_a_chain_gives_the_bits_of_its_ops(device: str) -> None:
    chain, (weight,), given = chain_of_two(device)
    assert chain.names == ("x", "r", "y", "s", "z")
    again = [chain, copy.copy(chain)]
    if device == "cpu":  # the simulator has no storages that are copied or pickled
        again += [copy.deepcopy(chain), pickled(chain)]
    for same in again:
        y, z, total = (torch.zeros_like(given["x"]) for _ in range(3))
        total.copy_(given["r"])
        versions = total._version, y._version
        assert same(given["x"], total, y, given["s"], z) is None
        expected, expected_total = torch_mlxnorm.add_rms_norm(given["x"], given["r"], weight)
        assert_all_same_bits([total, y], [expected_total, expected])
        assert_same_bits(z, torch_mlxnorm.rms_norm_mul(expected, None, given["s"]))
        assert (total._version, y._version) == tuple(v + 1 for v in versions)
    assert repr(chain) == "Chain(x, r, y, s, z: add_rms_norm, rms_norm_mul)"


def test_a_chain_refuses_everything_before_it_runs_anything(device: str) -> None:
    chain, (weight,), given = chain_of_two(device)
    y, z, total = (torch.zeros(2, 16, device=device) for _ in range(3))
    for wrong, text in [
        (torch.zeros(3, 16, device=device), r"out must have shape \[2, 16\] as baked, got \[3, 16"),
        (given["s"], "out must not share memory with scale"),
    ]:
        with pytest.raises(RuntimeError, match=f"rms_norm_mul record: {text}"):
            chain(given["x"], total, y, given["s"], wrong)
    weight.requires_grad_()
    with pytest.raises(RuntimeError, match="add_rms_norm record: inference only, but weight"):
        chain(given["x"], total, y, given["s"], z)
    assert total.eq(0.0).all() and y.eq(0.0).all()
    for wrong_count in [(given["x"],), (given["x"], total, y, given["s"], z, z)]:
        with pytest.raises(TypeError, match="takes a tensor for each of its 5 names, got"):
            chain(*wrong_count)
    with pytest.raises(TypeError, match="by keyword"):
        chain(given["x"], total, y, given["s"], z=z)


def test_what_is_no_chain(device: str) -> None:
    x = randn(2, 16, device=device)
    record = prebake("add_rms_norm", x, x, None)
    with pytest.raises(ValueError, match="calls must be at least one"):
        prebake_chain()
    with pytest.raises(TypeError, match="out must be 2 tensors, got 1"):
        record.bind("x", "r", out="y")
    with pytest.raises(TypeError, match="takes at most 6 tensors"):
        prebake_chain(record.bind(*"abcdefg", out=("y", "z")))
    with pytest.raises(TypeError, match="residual must be a tensor or None, got float"):
        prebake_chain(record.bind("x", 1.0, out=("y", "z")))


@pytest.mark.usefixtures("simulated_mps")
def test_records_of_a_chain_are_of_one_device() -> None:
    records = [
        prebake("rms_norm", randn(2, 16, device=device), None).bind("x", None, out="y")
        for device in ("cpu", "mps")
    ]
    with pytest.raises(ValueError, match=r"records must be on cpu \(as the first\), got mps"):
        prebake_chain(*records)


# ---- torch.compile, MPS --------------------------------------------------------------------------


def test_compile_says_what_to_use_instead_of_rms_norm_record() -> None:
    x, weight = randn(2, 8), randn(8)
    record, out = RmsNormRecord(torch.float32, 2, 8), torch.empty_like(x)

    def model(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        record(x, weight, out)
        return out + 1

    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"is for eager mode; use torch_mlxnorm.rms_norm"):
        torch.compile(model, backend="eager", fullgraph=True)(x, weight, out)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    assert_same_bits(compiled(x, weight, out), rms_norm(x, weight) + 1)


def test_compile_leaves_it_out_of_its_graphs(device: str) -> None:
    x, weight = randn(2, 8, device=device), randn(8, device=device)
    record, out = prebake("rms_norm", x, weight), torch.empty_like(x)

    def model(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        record(x, weight, out=out)
        return out + 1

    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model, backend="eager", fullgraph=True)(x, weight, out)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    assert_same_bits(compiled(x, weight, out), rms_norm(x, weight) + 1)


@pytest.mark.usefixtures("simulated_mps")
@each_op
def test_a_call_encodes_one_dispatch_and_looks_nothing_up(op: Op) -> None:
    call = op.call((2,), 64, torch.bfloat16, "mps")
    record, outs = record_and_outs(call)
    torch.mps.synchronize()
    metal_sim.reset_stats()
    for _ in range(3):
        call.by(record, outs)
    stats = metal_sim.stats()
    # A pipeline, the buffers, the parameters and the dispatch.
    assert stats["messages"] == 3 * (1 + len(call.tensors) + len(outs) + 2)
    assert stats["dispatches"] == stats["blocks"] == 3
    for nothing in ("commits", "copies", "buffers", "libraries", "functions", "pipelines"):
        assert stats[nothing] == 0, nothing


@pytest.mark.usefixtures("simulated_mps")
@each_op
def test_the_op_sends_as_many_messages_as_its_record(op: Op) -> None:
    call = op.call((2,), 64, torch.bfloat16, "mps")
    outs = call.empty_outs()
    call(out=outs)
    metal_sim.reset_stats()
    call(out=outs)
    stats = metal_sim.stats()
    assert stats["messages"] == 1 + len(call.tensors) + len(outs) + 2
    assert stats["dispatches"] == stats["blocks"] == 1


@pytest.mark.usefixtures("simulated_mps")
def test_a_chain_is_one_block() -> None:
    chain, _, given = chain_of_two("mps")
    y, z = (torch.zeros_like(given["x"]) for _ in range(2))
    torch.mps.synchronize()
    metal_sim.reset_stats()
    chain(given["x"], given["r"], y, given["s"], z)
    stats = metal_sim.stats()
    assert (stats["blocks"], stats["dispatches"]) == (1, 2)
    assert stats["messages"] == (3 + 5) + (3 + 3)


@pytest.mark.usefixtures("simulated_mps")
def test_a_record_dies_alone() -> None:
    x = randn(2, 64, device="mps")
    out = torch.empty_like(x)

    def live_after_records() -> dict[str, int]:
        for _ in range(4):
            prebake("rms_norm", x, None)(x, None, out=out)
        torch.mps.synchronize()
        return metal_sim.live_objects()

    assert live_after_records() == live_after_records()


def test_every_op_has_a_record() -> None:
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    baked = {n.removeprefix("mlxnorm::_bake_") for n in names if n.startswith("mlxnorm::_bake_")}
    assert baked == set(OPS)
