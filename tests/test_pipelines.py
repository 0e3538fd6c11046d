"""When Metal kernels are compiled: one for a first call, several side by side, all ahead of the
calls; `torch_mlxnorm.warm_up` and `compiled_kernels`."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path
from typing import Any

import metal_sim
import pytest
import torch
from ops import OPS, Op, each_op
from tensors import DTYPES, misaligned, type_id

import torch_mlxnorm
from torch_mlxnorm import compiled_kernels, warm_up

TESTS = Path(__file__).parent


def pipelines_made(run: Any) -> int:
    metal_sim.reset_stats()
    run()
    stats = metal_sim.stats()
    assert stats["libraries"] == stats["metallibs"] == 0
    return stats["pipelines"]


# ---- from the metallib, which the simulator has for each op --------------------------------------


def test_metallib_is_preferred(simulated_mps: str) -> None:
    metal_sim.reset_stats()
    torch_mlxnorm.rms_norm(torch.ones(3, 24, device="mps"), None)
    kernels = compiled_kernels("mps")
    assert {kernel.origin for kernel in kernels} == {"metallib"}
    assert "rms_norm_simd_1_float32_vector" in {kernel.name for kernel in kernels}
    assert all(0.0 < kernel.seconds < 600.0 for kernel in kernels)
    assert compiled_kernels() == kernels
    assert metal_sim.stats()["libraries"] == 0


def test_a_pipeline_is_listed_once_for_each_set_of_options(simulated_mps: str) -> None:
    x, w = torch.ones(3, 88, device="mps"), torch.ones(88, device="mps")
    before = len(compiled_kernels())
    for eps in (1e-6, 1e-5):
        torch_mlxnorm.rms_norm(x, w, eps)
        torch_mlxnorm.rms_norm(x, None, eps)
    new = [kernel.name for kernel in compiled_kernels()[before:]]
    # Some may have been made by another test; never twice.
    assert len(new) <= 2 and set(new) <= {"rms_norm_simd_1_float32_vector"}


def test_other_devices_compile_nothing() -> None:
    torch_mlxnorm.rms_norm(torch.ones(3, 24), None)
    assert compiled_kernels("cpu") == compiled_kernels("meta") == []


@pytest.mark.parametrize("dtype", DTYPES, ids=type_id)
@each_op
def test_calls_after_warm_up_make_nothing(simulated_mps: str, op: Op, dtype: torch.dtype) -> None:
    """With any number of rows, any optional tensors but extras, any scale, in any layout."""
    dims = [20, 1000, 18000, 34000]
    form = options_of(op).get("form", "normalize")
    warm_up(op.name, dtype, dims, form=form)
    warm_up(op.name, dtype, dims[1:2], form=form, unaligned=True)

    def calls() -> None:
        for dim, rows, scale in product(dims, (1, 40), op.scale_kinds):
            if dim * rows < 50_000:
                call = op.call((rows,), dim, dtype, "mps", scale=scale, missing=op.extras)
                call()
                call.having(**dict.fromkeys(op.optional))()
                for name in op.optional:
                    call.having(**{name: None}).under(weight_offset=1.0)()
        call = op.call((40,), dims[1], dtype, "mps", missing=op.extras)
        call.mapped(misaligned, call.rowwise)()

    assert pipelines_made(calls) == 0


OPTIONS = {
    "casting_mode": "llama",
    "round_intermediates": True,
    "activation": "sigmoid",
    "norm_before_gate": True,
    "interleaved": True,
    "full_tables": True,
    "rope_rounding": "products",
    "gate_activation": "tanh",
    "modulation": "once",
    "form": "rms",  # that of calls here
    "silu": True,
}


def options_of(op: Op) -> dict[str, Any]:
    return {name: value for name, value in OPTIONS.items() if name in op.option_names}


@pytest.mark.parametrize("float32", ["none", "all", "even"])
@each_op
def test_warm_up_has_the_options_of_calls(simulated_mps: str, op: Op, float32: str) -> None:
    call = op.call((2,), 328, torch.float16, "mps", float32=float32, scale="dim", **options_of(op))
    operand_dtypes: Any = {name: call[name].dtype for name in op.operands}
    if float32 == "all":
        operand_dtypes = torch.float32
    exactly = {"missing": (), "extras": op.extras, "scale": "many"} | OPTIONS
    exactly |= {"operand_dtypes": operand_dtypes}
    warm_up(getattr(torch_mlxnorm, op.name), torch.float16, 328, **exactly)
    assert pipelines_made(call) == 0
    # Few rows and many: nothing else was made.
    assert pipelines_made(lambda: warm_up(op.name, torch.float16, 328, **exactly)) == 0


def test_warm_up_of_a_16_bit_scale_beside_float32(simulated_mps: str) -> None:
    """Rounded to its own dtype when it is activated, though nothing else is."""
    op = OPS["rms_norm_mul"]
    call = op.call((2,), 336, torch.float32, "mps", scale="dim").under(**options_of(op))
    call = call.mapped(torch.Tensor.bfloat16, ["scale"])
    types = {"scale": torch.bfloat16}
    warm_up("rms_norm_mul", torch.float32, 336, missing=(), operand_dtypes=types, **OPTIONS)
    assert pipelines_made(call) == 0


def test_warm_up_of_a_float32_residual(simulated_mps: str) -> None:
    op = OPS["add_rms_norm"]
    call = op.call((2,), 360, torch.float16, "mps", missing=op.extras).with_wide_residual()
    types = {"residual": torch.float32}
    warm_up("add_rms_norm", torch.float16, 360, missing=(), operand_dtypes=types)
    assert pipelines_made(call) == 0


def test_warm_up_of_the_record(simulated_mps: str) -> None:
    options = {"casting_mode": "llama", "weight_dtype": torch.float32, "device": "mps"}
    warm_up("rms_norm", torch.float16, 4096, unaligned=True, missing=(),
            operand_dtypes=torch.float32, casting_mode="llama")  # fmt: skip
    record = lambda: torch_mlxnorm.RmsNormRecord(torch.float16, 1, 4096, **options)  # noqa: E731
    assert pipelines_made(record) == 0


def test_warm_up_dispatches_nothing(simulated_mps: str) -> None:
    metal_sim.reset_stats()
    warm_up(None, torch.float32, 8)
    stats = metal_sim.stats()
    assert stats["dispatches"] == stats["commits"] == stats["copies"] == stats["buffers"] == 0


# ---- arguments, the same on every device ---------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "op": ({"ops": ["rms_norm", "layer_norm"]}, ValueError,
           "ops must be among rms_norm, .*, got 'layer_norm'"),
    "function": ({"ops": torch.nn.functional.rms_norm}, ValueError, "ops must be among"),
    "dtype": ({"dtypes": [torch.float16, torch.float64]}, TypeError,
              "dtypes must be float32, float16 or bfloat16, got float64"),
    "dim": ({"dims": [8, 0]}, ValueError, "dims must be at least 1, got 0"),
    "operand": ({"operand_dtypes": {"bias": torch.float16}}, ValueError,
                r"operand_dtypes must name arguments of the ops \(scale, weight\), got 'bias'"),
    "operand dtype": ({"operand_dtypes": torch.float64}, TypeError,
                      "operand_dtypes must be float32, float16 or bfloat16, got float64"),
    "residual dtype": ({"ops": "rms_norm_add", "operand_dtypes": {"residual": torch.float16}},
                       TypeError, "operand_dtypes: residual may be float32 only"),
    "missing": ({"missing": "scale"}, ValueError,
                r"missing must name arguments of the ops \(weight\), got 'scale'"),
    "extras": ({"extras": "gate"}, ValueError,
               r"extras must name arguments of the ops \(there are none\), got 'gate'"),
    "scale": ({"scale": "two"}, ValueError, 'scale must be "one", "many" or None, got \'two\''),
    "casting_mode": ({"casting_mode": "qwen"}, ValueError,
                     'casting_mode must be "gemma" or "llama", got "qwen"'),
    "gate_activation": ({"ops": "add_rms_norm", "gate_activation": "silu"}, ValueError,
                        "gate_activation must be .*, got \"silu\""),
    "activation": ({"activation": "relu"}, ValueError, "activation must be .*, got \"relu\""),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_warm_up_checks_its_arguments(device: str, case: str) -> None:
    arguments, error, text = WRONG[case]
    right = {"ops": "rms_norm_mul", "dtypes": torch.float16, "dims": 8, "device": device}
    warm_up(**right)
    with pytest.raises(error, match=f"mlxnorm::(warm_up|rms_norm_mul|add_rms_norm): {text}"):
        warm_up(**right | arguments)


def test_warm_up_of_a_dim_that_the_kernels_cannot_count(simulated_mps: str) -> None:
    expected = "dims must be at most 2147483648 on mps:0, got 2147483649"
    with pytest.raises(ValueError, match=f"mlxnorm::warm_up: {expected}"):
        warm_up("rms_norm", torch.float16, 2**31 + 1)


# ---- from source, as where the extension was built without Xcode ---------------------------------

PRELUDE = f"""
    import sys
    sys.path.insert(0, {str(TESTS)!r})
    import json, threading, torch, metal_sim
    metal_sim.enable()
    metal_sim.refuse_metallibs()
    import torch_mlxnorm
    from torch_mlxnorm import compiled_kernels, rms_norm, warm_up

    def stats():
        counted = metal_sim.stats()
        metal_sim.reset_stats()
        names = ("libraries", "kernels_compiled", "pipelines", "metallibs")
        return [counted[name] for name in names]

    def at_once(*calls):
        '''What they return or raise, each in a thread of its own.'''
        outcomes = [None] * len(calls)
        def run(i):
            try:
                outcomes[i] = calls[i]()
            except Exception as error:
                outcomes[i] = f"{{type(error).__name__}}: {{error}}"
        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        return outcomes

    seen = []
    x = torch.arange(1.0, 201.0, device="mps").view(2, 100)
"""


def from_source(code: str) -> tuple[Any, str]:
    """What a fresh process that has no metallib notes in `seen`, and its stderr."""
    program = textwrap.dedent(PRELUDE) + textwrap.dedent(code) + "\nprint(json.dumps(seen))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


@pytest.mark.usefixtures("simulated_mps")
def test_first_call_compiles_one_kernel() -> None:
    seen, messages = from_source("""
        expected = rms_norm(x.cpu(), None)
        for call in (lambda: rms_norm(x, None),       # the kernel
                     lambda: rms_norm(x, None),       # nothing
                     lambda: rms_norm(x, x[0]),       # its pipeline with a weight
                     lambda: rms_norm(x[:, 1:], None)):  # scalar access: another kernel
            call()
            seen.append(stats())
        assert torch.allclose(rms_norm(x, None).cpu(), expected)
        seen.append([kernel[:2] for kernel in compiled_kernels()])
        assert all(0.0 < kernel.seconds < 600.0 for kernel in compiled_kernels())
    """)
    assert seen[:4] == [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]]
    vector, scalar = (
        [f"rms_norm_simd_1_float32_{access}", "source"] for access in ("vector", "scalar")
    )
    assert seen[4] == [vector, vector, scalar]
    assert messages.count("the precompiled Metal library was refused") == 1


@pytest.mark.usefixtures("simulated_mps")
def test_different_kernels_are_compiled_side_by_side() -> None:
    seen, _ = from_source("""
        def call(dtype, dim):
            return lambda: rms_norm(torch.ones(1, dim, dtype=dtype).to("mps"), None)
        half, single = torch.float16, torch.float32
        calls = [call(dtype, dim) for dtype in (half, single) for dim in (100, 1001)]
        at_once(*calls)
        seen.append(metal_sim.stats()["compiled_at_once"])
        seen.append(stats())
        at_once(*calls)
        seen.append(stats())
        warm_up("rms_norm", torch.bfloat16, [104, 1001], unaligned=True)
        seen.append(metal_sim.stats()["compiled_at_once"])
        seen.append(stats())
        y = torch.ones(40, 112, dtype=torch.bfloat16, device="mps")
        rms_norm(y[:, :104], y[0, :104])
        rms_norm(y[:, 1:105], None)
        rms_norm(torch.ones(7, 1001, dtype=torch.bfloat16).to("mps"), None)
        seen.append(stats())
    """)
    together, first, second, warm_together, warm, after = seen
    assert together >= 2 and warm_together >= 2
    assert first == [4, 4, 4, 0]
    assert second == [0, 0, 0, 0]
    assert warm[:2] == [3, 3]  # short rows with vector and scalar access, odd long ones
    assert after == [0, 0, 0, 0]


@pytest.mark.usefixtures("simulated_mps")
def test_one_kernel_is_compiled_once_for_all_threads() -> None:
    seen, _ = from_source("""
        results = at_once(*[lambda: rms_norm(x, None).cpu().sum().item()] * 8)
        assert len(set(results)) == 1 and isinstance(results[0], float), results
        seen.append(stats())
    """)
    assert seen == [[1, 1, 1, 0]]


@pytest.mark.usefixtures("simulated_mps")
def test_a_failed_compilation_is_reported_to_all_and_tried_again() -> None:
    seen, _ = from_source("""
        with metal_sim.failing_compiler("program_source:3: error: the compiler is gone"):
            seen += at_once(*[lambda: rms_norm(x, None)] * 4)
            seen += at_once(lambda: warm_up("rms_norm", torch.float32, [100, 1001]))
        seen.append(compiled_kernels())
        assert rms_norm(x, None).isfinite().all()
        seen.append(stats())
    """)
    *errors, listed, afterwards = seen
    assert len(errors) == 5
    for error in errors:
        assert error.startswith("RuntimeError: mlxnorm: Metal source of rms_norm_")
        assert "program_source:3: error: the compiler is gone" in error
    assert listed == []
    assert afterwards == [1, 1, 1, 0]


@pytest.mark.usefixtures("simulated_mps")
def test_warm_up_makes_no_more_than_it_is_asked_for() -> None:
    seen, _ = from_source("""
        def warm(op="rms_norm_triple", **options):
            warm_up(op, torch.bfloat16, 2824, **options)
            seen.append(stats())
        warm(missing=("weight_b", "weight_c"))  # for few rows and for many
        warm(missing="weight_c")
        warm(missing="weight_c", unaligned=True)
        warm()
        warm()
        warm("add_rms_norm")  # with and without a weight; no extras
        warm("add_rms_norm", missing=(), extras="gate", scale="one")
        warm("add_rms_norm", missing=(), extras=["gate", "next_shift"], scale="one")
        y = torch.ones(40, 2824, dtype=torch.bfloat16).to("mps")
        torch_mlxnorm.add_rms_norm(y, y, y[0], gate=y[0, :1])
        seen.append(stats())
    """)
    triple, add = seen[:5], seen[5:]
    assert triple[:3] == [[1, 1, 2, 0], [0, 0, 2, 0], [1, 1, 2, 0]]
    # Without weights few rows and many have one plan.
    assert triple[3:] == [[0, 0, 2 * (2**3 - 2) - 1, 0], [0] * 4]
    assert add == [[1, 1, 2, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0] * 4]
