"""torch_mlxnorm.RmsNormRecord."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import metal_sim
import numpy as np
import pytest
import torch
from oracle import assert_same_bits
from tensors import DTYPES, misaligned, randn, type_id
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_mlxnorm import _C, RmsNormRecord, rms_norm

# Each has its kernel on MPS.
DIMS = [1, 33, 128, 2816, 16384, 40000]


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@pytest.mark.parametrize("dim", DIMS)
@torch.no_grad()
def test_gives_the_bits_of_the_op(device: str, dim: int, dtype: torch.dtype) -> None:
    x = randn(2, 3, dim, dtype=dtype, device=device)
    for weight_dtype in DTYPES:
        weight = torch.nn.Parameter(randn(dim, dtype=weight_dtype, device=device, seed=1))
        for options in ({}, {"eps": 1e-2, "weight_offset": 1.0, "casting_mode": "llama"}):
            record = RmsNormRecord(
                dtype, 6, dim, weight_dtype=weight_dtype, device=device, **options
            )
            out = torch.full_like(x, float("nan"))
            assert record(x, weight, out) is None
            assert_same_bits(out, rms_norm(x, weight, **options))
    record = RmsNormRecord(dtype, 6, dim, has_weight=False, device=device)
    record(x, None, out)
    assert_same_bits(out, rms_norm(x, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_any_storage_offset(device: str, dtype: torch.dtype) -> None:
    x = randn(4, 128, dtype=dtype, device=device)
    weight = randn(128, dtype=dtype, device=device, seed=1)
    expected = rms_norm(x, weight)
    record = RmsNormRecord(dtype, 4, 128, device=device)
    for tensors in (
        (misaligned(x), weight, torch.empty_like(x)),
        (x, misaligned(weight), torch.empty_like(x)),
        (x, weight, misaligned(torch.empty_like(x))),
    ):
        record(*tensors)
        assert_same_bits(tensors[2], expected)


def test_in_place_and_in_another_shape(device: str) -> None:
    x = randn(6, 64, dtype=torch.float32, device=device)
    expected = rms_norm(x, None)
    record = RmsNormRecord(torch.float32, 6, 64, has_weight=False, device=device)
    out = torch.empty(2, 3, 64, device=device)
    record(x, None, out)
    assert_same_bits(out.view(6, 64), expected)
    version = x._version
    record(x, None, x)
    assert x._version == version + 1
    assert_same_bits(x, expected)


def test_many_rows_past_the_caches() -> None:
    x = randn(4096, 2048, dtype=torch.float32, device="cpu")
    out = torch.empty_like(x)
    RmsNormRecord(torch.float32, 4096, 2048, has_weight=False)(x, None, out)
    assert_same_bits(out, rms_norm(x, None))


def arguments(device: str) -> dict[str, Any]:
    """Of a call that fits: 2 rows of 8, float16."""
    half = {"dtype": torch.float16, "device": device}
    return {"x": torch.ones(2, 8, **half), "weight": torch.ones(8, **half),
            "out": torch.ones(2, 8, **half)}  # fmt: skip


Change = Callable[[Tensor], Tensor | None]
MISFITS: dict[str, tuple[str, Change, type[Exception], str]] = {
    "dtype of x": ("x", lambda t: t.float(), TypeError, "x must be float16 as baked, got float32"),
    "dtype of out": ("out", lambda t: t.bfloat16(), TypeError,
                     "out must be float16 as baked, got bfloat16"),
    "dtype of weight": ("weight", lambda t: t.float(), TypeError,
                        "weight must be float16 as baked, got float32"),
    "device": ("x", lambda t: t.to("meta"), RuntimeError, "as baked, got meta"),
    "rows": ("x", lambda t: t[:1], RuntimeError,
             "x must have 2 rows of 8 elements as baked, got shape [1, 8]"),
    "more rows": ("x", lambda t: t.repeat(2, 1), RuntimeError,
                  "x must have 2 rows of 8 elements as baked, got shape [4, 8]"),
    "dim": ("out", lambda t: t.view(4, 4), RuntimeError,
            "out must have 2 rows of 8 elements as baked, got shape [4, 4]"),
    "strides": ("x", lambda t: t.view(8, 2).t(), RuntimeError,
                "x must be contiguous, got strides [1, 2] for shape [2, 8]"),
    "no weight": ("weight", lambda t: None, RuntimeError,
                  "weight must be a tensor as baked, got None"),
    "size of weight": ("weight", lambda t: t[:7], RuntimeError,
                       "weight must be contiguous with shape [8], got shape [7] and strides [1]"),
    "strides of weight": ("weight", lambda t: t.repeat(2)[::2], RuntimeError,
                          "must be contiguous with shape [8], got shape [8] and strides [2]"),
    "gradient": ("weight", lambda t: t.requires_grad_(), RuntimeError,
                 "inference only, but an argument requires grad"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_refuses_what_was_not_baked(device: str, case: str) -> None:
    name, change, error, text = MISFITS[case]
    record = RmsNormRecord(torch.float16, 2, 8, device=device)
    fitting = arguments(device)
    record(**fitting)
    before = fitting["out"].clone()
    with pytest.raises(error) as raised:
        record(**fitting | {name: change(fitting[name])})
    assert type(raised.value) is error
    assert str(raised.value).startswith("mlxnorm::RmsNormRecord: ")
    assert text in str(raised.value)
    assert_same_bits(fitting["out"].detach(), before)


def test_refuses_a_weight_that_was_not_baked(device: str) -> None:
    record = RmsNormRecord(torch.float16, 2, 8, has_weight=False, device=device)
    with pytest.raises(RuntimeError, match="weight must be None as baked, got a tensor"):
        record(**arguments(device))


def test_refuses_overlap(device: str) -> None:
    record = RmsNormRecord(torch.float16, 2, 8, device=device)
    given = arguments(device)
    storage = torch.ones(32, dtype=torch.float16, device=device)
    with pytest.raises(RuntimeError, match="out must not share memory with x unless"):
        record(storage[:16].view(2, 8), given["weight"], storage[8:24].view(2, 8))
    with pytest.raises(RuntimeError, match="out must not share memory with weight, got bytes"):
        record(given["x"], storage[:8], storage[:16].view(2, 8))


def test_refuses_tensors_that_stand_for_others() -> None:
    """Which PyTorch's dispatcher would unwrap."""
    record = RmsNormRecord(torch.float32, 2, 8)
    given = {name: tensor.float() for name, tensor in arguments("cpu").items()}
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(given["x"])
        with pytest.raises(RuntimeError, match="x must be a plain tensor"):
            record(fake, given["weight"], given["out"])
    negated = torch.ones(2, 8, dtype=torch.complex64).conj().imag  # has its negation pending
    assert negated.is_neg()
    with pytest.raises(RuntimeError, match="x must be a plain tensor"):
        record(negated, given["weight"], given["out"])


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"rows": 0}, ValueError, "rows and dim must be at least 1, got 0 and 8"),
        ({"dim": -1}, ValueError, "rows and dim must be at least 1, got 2 and -1"),
        ({"dtype": torch.int8}, TypeError,
         "dtype must be float32, float16 or bfloat16, got int8"),
        ({"weight_dtype": torch.float64}, TypeError,
         "weight_dtype must be float32, float16 or bfloat16, got float64"),
        ({"rows": 2**62, "dim": 4}, ValueError,
         "rows and dim must make a tensor of at most 2^47 bytes, got 4611686018427387904 and 4"),
        ({"rows": 2**31, "dim": 2**31}, ValueError, "a tensor of at most 2^47 bytes"),
        ({"dim": 2**63 - 1}, ValueError, "a tensor of at most 2^47 bytes"),
        ({"rows": 2**46 + 1, "dim": 1}, ValueError, "a tensor of at most 2^47 bytes"),
        ({"rows": 2**64 + 2}, ValueError, "rows must fit in 64 bits, got 18446744073709551618"),
        ({"dim": 8.0}, TypeError, "dim must be an int, got float"),
        ({"rows": True}, TypeError, "rows must be an int, got bool"),
        ({"rows": "2"}, TypeError, "rows must be an int, got str"),
        ({"dtype": "float16"}, TypeError, "dtype must be a torch.dtype, got 'float16'"),
        ({"dtype": torch.float64}, TypeError, "got float64"),
        ({"casting_mode": "qwen"}, ValueError,
         'casting_mode must be "gemma" or "llama", got "qwen"'),
        ({"device": "meta"}, NotImplementedError, "device must be cpu or mps, got meta"),
    ],
)  # fmt: skip
def test_bakes_only_what_there_is(
    device: str, wrong: dict[str, Any], error: type[Exception], text: str
) -> None:
    baked = {"dtype": torch.float16, "rows": 2, "dim": 8, "device": device}
    with pytest.raises(error) as raised:
        RmsNormRecord(**baked | wrong)
    assert text in str(raised.value)


def test_the_operator_behind_it_bakes_no_more(device: str) -> None:
    like = torch.empty(0, device=device)
    half = torch.float16
    bake = torch.ops.mlxnorm._bake_rms_norm
    for wrong in [(half, 0, 8, None), (half, 2**62, 4, None), (half, -1, -8, None)]:
        with pytest.raises(ValueError, match="mlxnorm::RmsNormRecord: rows and dim must"):
            bake(like, *wrong, 1e-6, 0.0, "gemma")
    for wrong in [(torch.int8, 2, 8, None), (half, 2, 8, torch.float64)]:
        with pytest.raises(TypeError, match="dtype must be float32, float16 or bfloat16"):
            bake(like, *wrong, 1e-6, 0.0, "gemma")


def test_sizes_may_be_any_integers_and_eps_none(device: str) -> None:
    rows, dim = np.int64(2), torch.tensor(8)
    record = RmsNormRecord(torch.float32, rows, dim, eps=None, has_weight=False, device=device)
    x = 1e-4 * randn(2, 8, dtype=torch.float32, device=device)
    out = torch.empty_like(x)
    record(x, None, out)
    assert_same_bits(out, rms_norm(x, None, None))


def test_a_record_that_was_not_baked() -> None:
    """Made past __init__, or from an address, it is an error and no crash."""

    class WithoutInit(RmsNormRecord):
        def __init__(self) -> None:
            pass

    given = arguments("cpu")
    for kind in (RmsNormRecord, _C.RmsNormRecord, WithoutInit):
        empty = kind.__new__(kind)
        assert "RmsNormRecord" in repr(empty) or "WithoutInit" in repr(empty)
        with pytest.raises(RuntimeError, match="nothing was baked: __init__ was not called"):
            empty(**given)
    with pytest.raises(TypeError, match="__init__"):
        WithoutInit()
    for address in (0, 1, id(given)):
        with pytest.raises(TypeError, match="incompatible constructor arguments"):
            _C.RmsNormRecord(address)


def test_a_record_is_baked_once(device: str) -> None:
    record = RmsNormRecord(torch.float16, 2, 8, device=device)
    before = repr(record)
    with pytest.raises(RuntimeError, match="baked already"):
        record.__init__(torch.float32, 4, 4)
    assert repr(record) == before
    record(**arguments(device))


class Named(RmsNormRecord):
    def __init__(self, name: str) -> None:
        super().__init__(torch.float16, 2, 8)
        self.name = name


def pickled(record: RmsNormRecord) -> RmsNormRecord:
    return pickle.loads(pickle.dumps(record))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_copies_and_pickles(device: str, again: Callable[[RmsNormRecord], RmsNormRecord]) -> None:
    options = {"eps": 1e-2, "weight_dtype": torch.float32, "weight_offset": 1.0}
    record = RmsNormRecord(torch.float16, 2, 8, casting_mode="llama", device=device, **options)
    given = arguments(device)
    given["weight"] = randn(8, device=device)
    given["x"].copy_(randn(2, 8, seed=1))
    record(**given)
    other = again(record)
    assert type(other) is RmsNormRecord and other is not record
    out = torch.zeros_like(given["out"])
    other(**given | {"out": out})
    assert_same_bits(out, given["out"])
    assert repr(other) == repr(record)

    named = again(Named("first"))
    assert (type(named), named.name) == (Named, "first")
    named(**arguments("cpu"))


def test_repr_shows_what_was_baked(device: str) -> None:
    record = RmsNormRecord(torch.bfloat16, 4, 2816, eps=None, has_weight=False, device=device)
    shown = repr(record)
    assert shown.startswith("RmsNormRecord(dtype=torch.bfloat16, rows=4, dim=2816, eps=None, ")
    again = eval(shown, {"RmsNormRecord": RmsNormRecord, "torch": torch, "device": torch.device})
    assert repr(again) == shown


def test_compile_says_what_to_use_instead(device: str) -> None:
    record = RmsNormRecord(torch.float16, 2, 8, device=device)

    def model(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        record(x, weight, out)
        return out + 1

    given = arguments(device)
    given["x"].mul_(torch.arange(8, device=device))
    expected = rms_norm(given["x"], given["weight"]) + 1
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"is for eager mode; use torch_mlxnorm.rms_norm"):
        torch.compile(model, backend="eager", fullgraph=True)(**given)
    torch._dynamo.reset()
    assert_same_bits(torch.compile(model, backend="eager")(**given), expected)


@pytest.mark.usefixtures("simulated_mps")
def test_a_call_encodes_one_dispatch_and_looks_nothing_up() -> None:
    x = randn(2, 2816, dtype=torch.bfloat16, device="mps")
    weight = randn(2816, dtype=torch.bfloat16, device="mps")
    out = torch.empty_like(x)
    record = RmsNormRecord(torch.bfloat16, 2, 2816, device="mps")
    torch.mps.synchronize()
    metal_sim.reset_stats()
    for _ in range(3):
        record(x, weight, out)
    stats = metal_sim.stats()
    assert stats["dispatches"] == 3
    for nothing in ("commits", "copies", "buffers", "libraries", "functions", "pipelines"):
        assert stats[nothing] == 0, nothing


@pytest.mark.usefixtures("simulated_mps")
def test_a_record_outlives_its_like_and_dies_alone() -> None:
    x = randn(2, 64, dtype=torch.float32, device="mps")
    out = torch.empty_like(x)

    def live_after_records() -> dict[str, int]:
        for _ in range(4):
            RmsNormRecord(torch.float32, 2, 64, has_weight=False, device="mps")(x, None, out)
        torch.mps.synchronize()
        return metal_sim.live_objects()

    assert live_after_records() == live_after_records()
