"""mlxnorm::rms_norm on every device."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_matches, assert_same_bits
from torch import Tensor

from torch_mlxnorm import reference, rms_norm

OP = torch.ops.mlxnorm.rms_norm
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TYPES = [(dtype, weight) for dtype in DTYPES for weight in dict.fromkeys([dtype, torch.float32])]

# Each length of row has its kernel on MPS: lanes of a SIMD group, registers with 2 and with 4
# words a thread, two passes over memory.
DIMS = [1, 7, 8, 33, 64, 128, 250, 513, 1000, 2816, 8200, 16384, 32776, 40001]


def randn(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(device)


def type_id(value: object) -> str:
    return str(value).removeprefix("torch.")


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "weight_dtype"), TYPES, ids=type_id)
@pytest.mark.parametrize("dim", DIMS)
def test_matches_reference(
    device: str, dim: int, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    x = randn(3, dim, dtype=dtype, device=device)
    weight = randn(dim, dtype=weight_dtype, device=device, seed=1)
    out = rms_norm(x, weight)
    assert out.dtype == dtype and out.device.type == device and out.is_contiguous()
    assert_matches(out, reference.rms_norm(x, weight))
    assert_matches(rms_norm(x, None), reference.rms_norm(x, None))


@pytest.mark.parametrize(("dtype", "weight_dtype"), TYPES, ids=type_id)
@pytest.mark.parametrize("weight_offset", [0.0, 1.0])
@pytest.mark.parametrize("dim", [96, 2816])
def test_llama_rounds_before_the_weight(
    device: str, dim: int, weight_offset: float, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    x = randn(4, dim, dtype=dtype, device=device)
    weight = randn(dim, dtype=weight_dtype, device=device, seed=1)
    options = {"weight_offset": weight_offset, "casting_mode": "llama"}
    out = rms_norm(x, weight, 1e-5, **options)
    expected = reference.rms_norm(x, weight, 1e-5, **options)
    # float32 and float64 may round the normalized value to different neighbours, seldom.
    assert_matches(out, expected, roundings=3)
    agree = (out.cpu() == expected.to(dtype)).float().mean().item()
    assert agree > (0.99 if dtype != torch.float32 else 0.3)
    if dtype != torch.float32:
        gemma = rms_norm(x, weight, 1e-5, weight_offset=weight_offset)
        assert (gemma == out).float().mean().item() < 0.9


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_eps_and_weight_offset(device: str, dtype: torch.dtype) -> None:
    x = 1e-3 * randn(5, 200, dtype=dtype, device=device)
    weight = randn(200, dtype=dtype, device=device, seed=1)
    for eps, offset in itertools.product([0.0, 1e-6, 1e-2], [0.0, 1.0, -0.5]):
        out = rms_norm(x, weight, eps, weight_offset=offset)
        assert_matches(out, reference.rms_norm(x, weight, eps, weight_offset=offset))


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
def test_agrees_with_pytorch(device: str, dtype: torch.dtype) -> None:
    x = randn(6, 2816, dtype=dtype, device="cpu")
    weight = randn(2816, dtype=dtype, device="cpu", seed=1)
    theirs = F.rms_norm(x, (2816,), weight, 1e-6)
    ours = rms_norm(x.to(device), weight.to(device)).cpu()
    torch.testing.assert_close(ours, theirs, rtol=ROUNDING_STEP[dtype], atol=1e-6)
    if dtype != torch.float32:
        assert (ours == theirs).float().mean().item() > 0.999


ROUNDING_STEP = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@pytest.mark.parametrize("dim", [24, 700, 40000])
def test_nan_and_infinity_propagate_as_in_pytorch(
    device: str, dim: int, dtype: torch.dtype
) -> None:
    x = randn(5, dim, dtype=dtype, device="cpu")
    x[0, 3] = float("nan")
    x[1, 5] = float("inf")
    x[2, 7] = -float("inf")
    x[3] = 0.0
    weight = randn(dim, dtype=dtype, device="cpu", seed=1)
    weight[2] = float("inf")
    weight[4] = float("nan")
    theirs = F.rms_norm(x, (dim,), weight, 1e-6)
    ours = rms_norm(x.to(device), weight.to(device)).cpu()
    torch.testing.assert_close(ours.isnan(), theirs.isnan())
    torch.testing.assert_close(ours.isinf(), theirs.isinf())
    finite = theirs.isfinite()
    torch.testing.assert_close(ours[finite], theirs[finite], rtol=ROUNDING_STEP[dtype], atol=1e-6)


def test_huge_float16_does_not_overflow_the_sum(device: str) -> None:
    x = torch.full((2, 4096), 65504.0, dtype=torch.float16, device=device)
    assert_matches(rms_norm(x, None), reference.rms_norm(x, None))
    assert rms_norm(x, None).cpu().eq(1.0).all()


def test_zeros_keep_their_sign(device: str) -> None:
    x = torch.tensor([[0.0, -0.0, 1.0, -1.0]], device=device)
    weight = torch.tensor([1.0, 1.0, 0.0, -0.0], device=device)
    theirs = F.rms_norm(x.cpu(), (4,), weight.cpu(), 1e-6)
    assert_same_bits(rms_norm(x, weight), theirs)


# ---- equal bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@pytest.mark.parametrize("dim", [7, 128, 1000, 2816, 8200])
def test_a_row_gives_the_same_bits_in_any_batch(device: str, dim: int, dtype: torch.dtype) -> None:
    x = randn(70, dim, dtype=dtype, device=device)
    weight = randn(dim, dtype=dtype, device=device, seed=1)
    batch = rms_norm(x, weight)
    assert_same_bits(rms_norm(x, weight), batch)
    for row in (0, 1, 69):
        assert_same_bits(rms_norm(x[row], weight), batch[row])
    assert_same_bits(rms_norm(x[3:40], weight), batch[3:40])


@pytest.mark.parametrize(("dtype", "weight_dtype"), TYPES, ids=type_id)
@pytest.mark.parametrize("dim", [128, 1000, 16384, 32776 * 2])
def test_alignment_does_not_change_a_bit(
    device: str, dim: int, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    """x, weight and out at storage offsets that rule out 16-byte access, one at a time."""

    def shifted(t: Tensor) -> Tensor:
        storage = torch.empty(t.numel() + 1, dtype=t.dtype, device=device)
        return storage[1:].view(t.shape).copy_(t)

    x = randn(2, dim, dtype=dtype, device=device)
    weight = randn(dim, dtype=weight_dtype, device=device, seed=1)
    expected = rms_norm(x, weight)
    assert_same_bits(rms_norm(shifted(x), weight), expected)
    assert_same_bits(rms_norm(x, shifted(weight)), expected)
    assert_same_bits(rms_norm(x, weight, out=shifted(torch.empty_like(x))), expected)


def test_threads_do_not_change_a_bit() -> None:
    x = randn(300, 2816, dtype=torch.float32, device="cpu")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = rms_norm(x, None)
        torch.set_num_threads(2)
        assert_same_bits(rms_norm(x, None), expected)
    finally:
        torch.set_num_threads(threads)


# ---- layouts ------------------------------------------------------------------------------------

# From a base tensor [2, 6, 4, 48], the shape of a small fused QKV.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed heads": lambda t: t.transpose(1, 2),
    "slice of a fused projection": lambda t: t.view(2, 6, 192)[..., 64:128],
    "slice, then heads": lambda t: t.view(2, 6, 192)[..., 64:128].view(2, 6, 4, 16).transpose(1, 2),
    "odd storage offset": lambda t: t.view(-1)[1 : 1 + 45 * 50].view(50, 45),
    "odd row stride": lambda t: t.view(48, 48)[:, :33],
    "every other row": lambda t: t.view(48, 48)[::2],
    "three leading dims, permuted": lambda t: t.permute(2, 0, 1, 3)[:, :, ::2],
    "expanded": lambda t: t[0, 0, 0].expand(5, 3, 48),
    "1-d": lambda t: t[1, 2, 3],
    "column of rows": lambda t: t.view(48, 48)[:, :1],
    "last dim strided": lambda t: t.view(48, 48).t(),
    "last dim strided, one row": lambda t: t.view(48, 48)[:, 3],
    "every other element": lambda t: t[..., ::2],
    "5-d": lambda t: t.view(2, 2, 3, 4, 48).permute(3, 1, 0, 2, 4),
    "5-d that folds": lambda t: t.view(2, 2, 3, 4, 48)[..., :32],
    "6-d with ones": lambda t: t.view(2, 1, 6, 1, 4, 48).transpose(0, 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device: str, layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](randn(2, 6, 4, 48, dtype=dtype, device=device))
    weight = randn(x.shape[-1], dtype=dtype, device=device, seed=1)
    out = rms_norm(x, weight)
    assert out.is_contiguous()
    assert_matches(out, reference.rms_norm(x, weight))
    assert_same_bits(out, rms_norm(x.contiguous(), weight))


def test_strided_weight(device: str) -> None:
    x = randn(3, 40, dtype=torch.float32, device=device)
    weight = randn(80, dtype=torch.float32, device=device)[::2]
    assert_same_bits(rms_norm(x, weight), rms_norm(x, weight.contiguous()))
    expanded = weight[:1].expand(40)
    assert_same_bits(rms_norm(x, expanded), rms_norm(x, expanded.contiguous()))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 8), (0, 0, 1)])
def test_no_rows(device: str, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, device=device)
    weight = torch.ones(shape[-1], device=device)
    assert rms_norm(x, weight).shape == shape
    out = torch.empty(shape, device=device)
    assert rms_norm(x, weight, out=out) is out


# Lazily mapped: only the pages of the rows are ever touched.
HUGE = 2**32 + 4096


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=type_id)
def test_offsets_past_32_bits(device: str, dtype: torch.dtype) -> None:
    try:
        storage = torch.empty(HUGE, dtype=dtype, device=device)
    except RuntimeError as error:
        if sys.platform != "darwin":
            raise
        pytest.skip(f"this Mac refuses a buffer of that size: {error}")
    rows = randn(3, 96, dtype=dtype, device=device)
    weight = randn(96, dtype=dtype, device=device, seed=1)
    expected = rms_norm(rows, weight)

    by_offset = storage[HUGE - 288 :].view(3, 96)
    by_offset.copy_(rows)
    assert_same_bits(rms_norm(by_offset, weight), expected)

    by_stride = storage.as_strided((3, 96), (2**31 + 8, 1))
    by_stride.copy_(rows)
    assert_same_bits(rms_norm(by_stride, weight), expected)

    out = storage[2**32 : 2**32 + 288].view(3, 96)
    assert_same_bits(rms_norm(rows, weight, out=out), expected)


# ---- out ----------------------------------------------------------------------------------------


def test_out_is_written_and_returned(device: str) -> None:
    x = randn(4, 100, dtype=torch.float32, device=device)
    out = torch.full_like(x, 7.0)
    version = out._version
    assert rms_norm(x, None, out=out) is out
    assert_same_bits(out, rms_norm(x, None))
    assert out._version == version + 1
    assert OP.out(x, None, out=out) is None


@pytest.mark.parametrize("dim", [48, 1000, 40000])
def test_in_place(device: str, dim: int) -> None:
    x = randn(3, dim, dtype=torch.float32, device=device)
    weight = randn(dim, dtype=torch.float32, device=device, seed=1)
    expected = rms_norm(x, weight)
    assert_same_bits(rms_norm(x, weight, out=x), expected)


def test_out_only_writes_its_own_elements(device: str) -> None:
    storage = torch.full((8, 33), 7.0, device=device)
    x = randn(4, 33, dtype=torch.float32, device=device)
    rms_norm(x, None, out=storage[2:6])
    assert storage[:2].cpu().eq(7.0).all() and storage[6:].cpu().eq(7.0).all()
    assert_same_bits(storage[2:6], rms_norm(x, None))


# ---- errors: the same text on cpu, mps and meta -------------------------------------------------

X = (2, 8)
ERRORS: dict[str, tuple[type[Exception], str, Callable[[str], object]]] = {
    "dtype of x": (
        TypeError,
        "mlxnorm::rms_norm: x must be float32, float16 or bfloat16, got int64",
        lambda d: rms_norm(torch.ones(X, dtype=torch.int64, device=d), None),
    ),
    "dtype of weight": (
        TypeError,
        "mlxnorm::rms_norm: weight must be float32 (as x) or float32, got float16",
        lambda d: rms_norm(torch.ones(X, device=d), torch.ones(8, dtype=torch.float16, device=d)),
    ),
    "size of weight": (
        RuntimeError,
        "mlxnorm::rms_norm: weight must have 8 elements (x.shape[-1]), got 7",
        lambda d: rms_norm(torch.ones(X, device=d), torch.ones(7, device=d)),
    ),
    "rank of weight": (
        RuntimeError,
        "mlxnorm::rms_norm: weight must have 1 dimension, got shape [1, 8]",
        lambda d: rms_norm(torch.ones(X, device=d), torch.ones(1, 8, device=d)),
    ),
    "0-d x": (
        RuntimeError,
        "mlxnorm::rms_norm: x must have at least 1 dimension, got a 0-d tensor",
        lambda d: rms_norm(torch.ones((), device=d), None),
    ),
    "dim 0": (
        RuntimeError,
        "mlxnorm::rms_norm: x must have a last dimension of at least 1, got shape [2, 0]",
        lambda d: rms_norm(torch.ones(2, 0, device=d), None),
    ),
    "casting_mode": (
        ValueError,
        'mlxnorm::rms_norm: casting_mode must be "gemma" or "llama", got "qwen"',
        lambda d: rms_norm(torch.ones(X, device=d), None, casting_mode="qwen"),
    ),
    "shape of out": (
        RuntimeError,
        "mlxnorm::rms_norm: out must have shape [2, 8] (as x), got [2, 9]",
        lambda d: rms_norm(torch.ones(X, device=d), None, out=torch.ones(2, 9, device=d)),
    ),
    "rank of out": (
        RuntimeError,
        "mlxnorm::rms_norm: out must have shape [2, 8] (as x), got [16]",
        lambda d: rms_norm(torch.ones(X, device=d), None, out=torch.ones(16, device=d)),
    ),
    "dtype of out": (
        TypeError,
        "mlxnorm::rms_norm: out must be float32 (as x), got float16",
        lambda d: rms_norm(
            torch.ones(X, device=d), None, out=torch.ones(X, dtype=torch.float16, device=d)
        ),
    ),
    "strides of out": (
        RuntimeError,
        "mlxnorm::rms_norm: out must be contiguous, got strides [1, 2] for shape [2, 8]",
        lambda d: rms_norm(torch.ones(X, device=d), None, out=torch.ones(8, 2, device=d).t()),
    ),
}


@pytest.fixture(params=["cpu", "mps", "meta"])
def where(request: pytest.FixtureRequest) -> str:
    if request.param == "mps":
        request.getfixturevalue("mps")
    return request.param


@pytest.mark.parametrize("case", ERRORS)
def test_errors(where: str, case: str) -> None:
    error, text, call = ERRORS[case]
    with pytest.raises(error) as raised:
        call(where)
    assert type(raised.value) is error
    assert str(raised.value).splitlines()[0] == text


@pytest.mark.parametrize(("here", "there"), list(itertools.permutations(["cpu", "mps", "meta"], 2)))
def test_error_for_another_device(mps: str, here: str, there: str) -> None:
    x = torch.ones(X, device=here)
    name = {"cpu": "cpu", "mps": "mps:0", "meta": "meta"}
    expected = f"must be on {name[here]} (as x), got {name[there]}"
    with pytest.raises(RuntimeError) as raised:
        rms_norm(x, torch.ones(8, device=there))
    assert str(raised.value).splitlines()[0] == f"mlxnorm::rms_norm: weight {expected}"
    with pytest.raises(RuntimeError) as raised:
        rms_norm(x, None, out=torch.ones(X, device=there))
    assert str(raised.value).splitlines()[0] == f"mlxnorm::rms_norm: out {expected}"


def test_error_for_overlap(device: str) -> None:
    storage = randn(100, dtype=torch.float32, device=device)
    x = storage[:64].view(4, 16)
    with pytest.raises(RuntimeError, match="out must not share memory with x unless"):
        rms_norm(x, None, out=storage[8:72].view(4, 16))
    with pytest.raises(RuntimeError, match="out must not share memory with weight, got bytes"):
        rms_norm(x[:1], storage[16:32], out=storage[20:36].view(1, 16))
    transposed = storage[:64].view(8, 8).t()
    with pytest.raises(RuntimeError, match="out must not share memory with x"):
        rms_norm(transposed, None, out=storage[:64].view(8, 8))
    neighbour = storage[64:80].view(1, 16)
    rms_norm(x[:1], None, out=neighbour)


# ---- autograd: inference only -------------------------------------------------------------------

NO_BACKWARD = "mlxnorm::rms_norm: inference only, it has no backward"


def test_backward_raises(where: str) -> None:
    x = randn(2, 8, dtype=torch.float32, device=where)
    weight = torch.ones(8, device=where, requires_grad=True)
    for out in (rms_norm(x.clone().requires_grad_(), None), rms_norm(x, weight)):
        assert out.requires_grad
        with pytest.raises(NotImplementedError, match=NO_BACKWARD):
            out.sum().backward()
    with torch.no_grad():
        assert not rms_norm(x, weight).requires_grad
    with torch.inference_mode():
        assert rms_norm(x, weight).is_inference()
    assert not rms_norm(x, None).requires_grad


def test_out_does_not_lose_a_gradient(where: str) -> None:
    x = randn(2, 8, dtype=torch.float32, device=where)
    weight = torch.ones(8, device=where, requires_grad=True)
    out = torch.empty_like(x)
    calls: list[Callable[[], object]] = [
        lambda: rms_norm(x.clone().requires_grad_(), None, out=out),
        lambda: rms_norm(x, weight, out=out),
        lambda: rms_norm(x, None, out=torch.empty_like(x).requires_grad_()),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="out= does not support automatic differentiation"):
            call()
    with torch.no_grad():
        for call in calls:
            call()


# ---- torch.library and torch.compile ------------------------------------------------------------

OPCHECK_LAYOUTS = ["contiguous", "transposed heads", "slice of a fused projection",
                   "last dim strided", "every other element", "expanded"]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@pytest.mark.parametrize("layout", OPCHECK_LAYOUTS)
def test_opcheck(device: str, layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](randn(2, 6, 4, 48, dtype=dtype, device=device))
    weight = randn(x.shape[-1], dtype=torch.float32, device=device, seed=1)
    torch.library.opcheck(OP.default, (x, weight))
    torch.library.opcheck(OP.default, (x, None, 1e-5), {"casting_mode": "llama"})
    # aot_dispatch_dynamic would call the backward that there is not; PyTorch has written
    # autograd_registration for CPU, CUDA and XPU only.
    checks = ["test_schema", "test_faketensor"]
    checks += ["test_autograd_registration"] if device == "cpu" else []
    torch.library.opcheck(OP.default, (x.detach().requires_grad_(), weight), test_utils=checks)
    out = torch.empty(x.shape, dtype=dtype, device=device)
    torch.library.opcheck(OP.out, (x, weight), {"weight_offset": 1.0, "out": out})


@pytest.fixture
def backend(device: str) -> str:
    """Inductor writes no code for the simulated device; there its passes run without it."""
    return "inductor" if device == "cpu" else "aot_eager"


@torch.no_grad()
def test_compile_equals_eager(device: str, backend: str) -> None:
    def model(x: Tensor, weight: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        heads = x.view(x.shape[0], -1, 4, 16).transpose(1, 2)
        y = torch.ops.mlxnorm.rms_norm(heads, None, 1e-5)
        rms_norm(x, weight, weight_offset=1.0, out=out)
        return y + 1, out * 2

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for rows in (3, 7, 12):
        x = randn(rows, 128, dtype=torch.float32, device=device, seed=rows)
        weight = randn(128, dtype=torch.float32, device=device)
        eager_out, compiled_out = torch.empty_like(x), torch.empty_like(x)
        eager = model(x, weight, eager_out)
        for a, b in zip(compiled(x, weight, compiled_out), eager, strict=True):
            assert_same_bits(a, b)
        assert_same_bits(compiled_out, eager_out)


@torch.no_grad()
def test_compile_checks_arguments(device: str, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(rms_norm, backend=backend, fullgraph=True, dynamic=True)
    with pytest.raises(Exception, match="weight must have .* elements"):
        compiled(torch.ones(2, 8, device=device), torch.ones(9, device=device))
