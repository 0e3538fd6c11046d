"""Self-tests of the simulated Metal: it computes right, and every checker finds its planted bug."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import metal_sim
import pytest
import torch
from beside import beside, run_programs
from beside import run as run_alone
from forked import Program
from translator import cpp_backend, msl

TESTS = Path(__file__).resolve().parent
SELFTEST = TESTS / "metal_sim" / "selftest"
SIMD_WIDTH = 32

# MTLDataType values.
FLOAT, INT, UINT, BOOL = 3, 29, 33, 53


@pytest.fixture(scope="module", autouse=True)
def simulator(simulated_mps: str) -> None:
    metal_sim.build_and_load("metal_sim_selftest", [SELFTEST / "launcher.mm"])


@pytest.fixture(autouse=True)
def nothing_left_to_run(simulator: None):
    """An error must surface in the test that made it."""
    yield
    torch.mps.synchronize()


flatten = runpy.run_path(str(TESTS.parent / "csrc/mps/embed_shaders.py"))["flatten"]
# Shaders as the product embeds them.
BUGS = flatten(SELFTEST / "bugs.metal", lines=True)
POSITIVE = flatten(SELFTEST / "positive.metal", lines=True)
OPS = flatten(SELFTEST / "ops.metal", lines=True)


def bug_line(kernel: str) -> int:
    """Line of the first comment `BUG` at or before the end of a kernel's body."""
    lines = (SELFTEST / "bugs.metal").read_text().splitlines()
    start = next(i for i, text in enumerate(lines) if f" {kernel}(" in text)
    end = next(i for i in range(start, len(lines)) if lines[i] == "}")
    marked = [i + 1 for i, text in enumerate(lines[: end + 1]) if text.endswith("// BUG")]
    return marked[-1]


def dispatch(source: str, kernel: str, buffers, *, threads=64, groups=1, **options) -> None:
    grid = [groups, 1, 1] if isinstance(groups, int) else groups
    group = [threads, 1, 1] if isinstance(threads, int) else threads
    torch.ops.metal_selftest.dispatch(source, kernel, buffers, grid, group, **options)


def run(kernel: str, *, source: str = BUGS, x=None, **options) -> torch.Tensor:
    x = torch.arange(1.0, 65.0) if x is None else x
    y = torch.zeros(64, device="mps")
    dispatch(source, kernel, [x.to("mps"), y], **options)
    return y.cpu()


PRELUDE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import torch, metal_sim
metal_sim.build_and_load("metal_sim_selftest", [{str(SELFTEST / "launcher.mm")!r}])
"""


# ---- planted bugs of kernels --------------------------------------------------------------------

PLANTED = [
    ("read_past_end", "out-of-bounds read of device memory: 4 bytes at byte 256"),
    ("write_past_end", "out-of-bounds write of device memory: 4 bytes at byte 256"),
    ("past_void_pointer", "out-of-bounds read of device memory: 4 bytes at byte 256"),
    ("misaligned_vector", "misaligned access: .* alignment of 16 bytes"),
    ("misaligned_word", "misaligned access: .* alignment of 16 bytes"),
    ("array_overflow", r"array overflow: index 32 is outside an array of type 'float\[32\]'"),
    ("overflow_in_helper", "threadgroup array overflow: write of 4 bytes at byte 252 .*'first'"),
    ("dynamic_overflow", "threadgroup array overflow: read of 4 bytes at byte 256 .*'scratch'"),
    ("missing_barrier", "data race on threadgroup memory .*read of byte 252 of 'scratch'"),
    ("reused_scratch", "data race on threadgroup memory .*write of byte 0 of 'partial'"),
    ("simd_race", "data race on threadgroup memory .*read of byte 0 of 'scratch'"),
    ("returned_before_barrier", "barrier divergence: thread 0 .* but thread 40 has returned"),
    ("two_barriers", "barrier divergence: thread 0 .* but thread 32 waits at the barrier"),
    ("returned_before_simd", "simd function with missing lanes.* lane 5 .* has returned"),
    ("simd_in_branches", "simd function with missing lanes.* is in another simd function"),
]
# Where the bug is in another function than the kernel.
CULPRITS = {
    "reused_scratch": "sum_of_all",
    "overflow_in_helper": "put",
    "past_void_pointer": "element",
}


@pytest.mark.parametrize(("kernel", "text"), PLANTED, ids=[name for name, _ in PLANTED])
def test_planted_bug_is_named_with_its_line(kernel: str, text: str) -> None:
    options = {"threadgroup_memory": 256} if kernel == "dynamic_overflow" else {}
    with pytest.raises(RuntimeError, match=f"simulated Metal: kernel '{kernel}_bug': {text}") as e:
        run(f"{kernel}_bug", **options)
    line = bug_line(CULPRITS.get(kernel, f"{kernel}_bug"))
    assert f"selftest/bugs.metal:{line}" in str(e.value)
    assert "of threadgroup (0, 0, 0)" in str(e.value)
    run(f"{kernel}_fixed", **options)


@pytest.mark.parametrize("dtype", ["float", "uint", "ushort"])
@pytest.mark.parametrize("order", ["forward", "reversed", "shuffled"])
def test_uninitialised_threadgroup_memory(dtype: str, order) -> None:
    with metal_sim.thread_order(order):
        with pytest.raises(RuntimeError, match="read of uninitialised threadgroup memory") as error:
            run(f"uninitialised_{dtype}_bug")
        assert f"selftest/bugs.metal:{bug_line('uninitialised')}" in str(error.value)
        run(f"uninitialised_{dtype}_fixed")


def test_result_that_depends_on_the_thread_order() -> None:
    with pytest.raises(
        metal_sim.OrderDependence, match="depends on the thread order.*device_race_bug"
    ):
        metal_sim.assert_order_independent(lambda: run("device_race_bug"))
    metal_sim.assert_order_independent(lambda: run("device_race_fixed"))


def test_thread_order_is_restored_and_checked() -> None:
    forward = run("device_race_bug")
    with metal_sim.thread_order("reversed"):
        backward = run("device_race_bug")
    assert not torch.equal(forward, backward)
    assert torch.equal(forward, run("device_race_bug"))
    with pytest.raises(ValueError, match="thread order must be one of"):
        with metal_sim.thread_order("sideways"):  # type: ignore[arg-type]
            pass


def test_simd_function_in_a_partial_simdgroup() -> None:
    with pytest.raises(
        RuntimeError, match="missing lanes.*simdgroup 1 has only 8 lanes.*not a multiple of 32"
    ):
        run("returned_before_simd_fixed", threads=40)
    run("returned_before_simd_fixed", threads=32)


# ---- planted bugs of dispatches -----------------------------------------------------------------


def scale_arguments(count: int, scale: float) -> torch.Tensor:
    return torch.tensor([count, torch.tensor(scale).view(torch.int32).item()], dtype=torch.int32)


def test_buffer_that_is_not_bound() -> None:
    x, y = torch.ones(64, device="mps"), torch.zeros(64, device="mps")
    dispatch(BUGS, "scaled", [x, y])
    with pytest.raises(RuntimeError, match=r"no buffer is bound to buffer\(2\) 'args'"):
        torch.mps.synchronize()
    dispatch(BUGS, "scaled", [x, y], bytes=scale_arguments(64, 3.0))
    assert y.cpu().tolist() == [3.0] * 64


def test_buffer_that_an_earlier_dispatch_left_behind() -> None:
    x, y = torch.ones(64, device="mps"), torch.zeros(64, device="mps")
    torch.mps.synchronize()
    dispatch(BUGS, "scaled", [x, y], bytes=scale_arguments(64, 3.0))
    dispatch(BUGS, "scaled", [x, y])
    with pytest.raises(
        RuntimeError, match="by this dispatch .an earlier dispatch on the same encoder"
    ):
        torch.mps.synchronize()


def test_buffer_without_a_parameter() -> None:
    with pytest.raises(
        RuntimeError, match="bound to index 2, but the kernel has no parameter for it"
    ):
        run("write_past_end_fixed", bytes=scale_arguments(64, 3.0))


def test_buffer_shorter_than_its_struct() -> None:
    with pytest.raises(
        RuntimeError, match="'args' holds 4 bytes but the kernel's parameter needs 8"
    ):
        run("scaled", bytes=torch.zeros(1, dtype=torch.int32))


def test_offset_in_elements_instead_of_bytes() -> None:
    # 30 is a right element offset and a misaligned byte offset; 32 is aligned but reads other data.
    with pytest.raises(
        RuntimeError, match=r"buffer\(0\) 'x': offset 30 is not a multiple of the element"
    ):
        run("write_past_end_fixed", offsets=[30, 0], threads=32)
    assert run("write_past_end_fixed", offsets=[32, 0], threads=32)[0].item() == 9.0
    assert run("write_past_end_fixed", offsets=[32 * 4, 0], threads=32)[0].item() == 33.0
    with pytest.raises(RuntimeError, match="offset 256 .in bytes. is not inside the buffer of 256"):
        run("write_past_end_fixed", offsets=[256, 0], threads=32)


def test_offset_of_a_void_pointer() -> None:
    # The parameter has no element size, so the access itself is what is misaligned.
    with pytest.raises(RuntimeError, match="misaligned access: .* alignment of 4 bytes"):
        run("past_void_pointer_fixed", offsets=[2, 0], threads=32)
    assert run("past_void_pointer_fixed", offsets=[128, 0], threads=32)[0].item() == 33.0


def test_nil_is_nothing_bound() -> None:
    def bind(*buffers: torch.Tensor | None, kernel: str = "write_past_end_fixed", **options):
        dispatch(POSITIVE if options else BUGS, kernel, buffers, **options)
        torch.mps.synchronize()

    x = torch.arange(1.0, 65.0)
    a, b = x.to("mps"), torch.zeros(64, device="mps")
    with pytest.raises(RuntimeError, match=r"no buffer is bound to buffer\(0\) 'x'"):
        bind(None, b)
    with pytest.raises(RuntimeError, match="index 2, but the kernel has no parameter for it"):
        bind(a, b, a)
    # So it may stand where there is no parameter.
    bind(a, b, None)
    bind(a, b, None, kernel="optional_buffer", constants=[1.0, BOOL, 0.0])
    assert torch.equal(b.cpu(), x)


def test_every_dispatch_is_set_up_by_itself() -> None:
    """As PyTorch's graph capture has it: what was set is used up."""
    arguments = scale_arguments(64, 3.0)
    assert run("scaled", bytes=arguments, again="all").tolist() == [3.0 * i for i in range(1, 65)]
    for again, text in (
        ("nothing", "dispatch without a pipeline state"),
        ("buffers", "dispatch without a pipeline state"),
        ("pipeline", r"no buffer is bound to buffer\(0\) 'x' by this dispatch"),
    ):
        with pytest.raises(RuntimeError, match=text):
            run("scaled", bytes=arguments, again=again)


def test_function_constants() -> None:
    x = torch.arange(1.0, 65.0)
    constants = [3.0, BOOL, 1.0, 4.0, FLOAT, 2.5]
    assert torch.equal(run("with_constants", constants=constants), -x * 2.5)
    with pytest.raises(RuntimeError, match="function constant 'factor'.*is read but was never set"):
        run("with_constants", constants=[3.0, BOOL, 1.0])
    with pytest.raises(
        RuntimeError, match="'factor' .* has type float, but its value was set as int"
    ):
        run("with_constants", constants=[3.0, BOOL, 1.0, 4.0, INT, 2.0])
    assert torch.equal(run("with_optional_constant"), x)
    assert torch.equal(run("with_optional_constant", constants=[4.0, FLOAT, 2.0]), x * 2)


def test_too_many_threads_per_threadgroup() -> None:
    with pytest.raises(
        RuntimeError, match="exceed the pipeline's maxTotalThreadsPerThreadgroup of 32"
    ):
        run("few_threads", threads=64)
    run("few_threads", threads=32)
    with pytest.raises(
        RuntimeError, match="exceed the pipeline's maxTotalThreadsPerThreadgroup of 1024"
    ):
        run("write_past_end_fixed", threads=1025)


def test_too_much_threadgroup_memory() -> None:
    with pytest.raises(
        RuntimeError, match="needs 32772 bytes of threadgroup memory; there are 32768"
    ):
        run("much_threadgroup_memory")
    with pytest.raises(
        RuntimeError, match="needs 32784 bytes of threadgroup memory; there are 32768"
    ):
        run("dynamic_overflow_fixed", threadgroup_memory=32784)
    with pytest.raises(RuntimeError, match="250 is not a multiple of 16"):
        run("dynamic_overflow_fixed", threadgroup_memory=250)
    with pytest.raises(RuntimeError, match=r"no length is set for threadgroup\(0\) 'scratch'"):
        run("dynamic_overflow_fixed")


def test_empty_grid() -> None:
    with pytest.raises(RuntimeError, match="the grid is empty"):
        run("write_past_end_fixed", groups=0)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("commit", "commit on the command buffer of PyTorch's stream"),
        ("wait", "waitUntilCompleted on the command buffer of PyTorch's stream"),
        ("end_encoding", "endEncoding on the command buffer of PyTorch's stream"),
        ("nil_pipeline", "the pipeline is nil"),
        ("no_pipeline", "dispatch without a pipeline state"),
        ("long_bytes", "setBytes takes 1 to 4096 bytes, not 4097"),
        ("buffer_past_end", "setBuffer: index 31 is above 30"),
        ("buffers_at_once", "setBuffers:offsets:withRange: is not captured"),
        ("buffer_offset", "setBufferOffset:atIndex: is not captured"),
        ("use_after_end", "setThreadgroupMemoryLength after endEncoding"),
        ("throw_with_rethrow", "carried out of the block"),
    ],
)
def test_host_misuse(what: str, text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        torch.ops.metal_selftest.misuse(what)
        torch.mps.synchronize()


@pytest.mark.parametrize("what", ["commit", "wait", "end_encoding"])
def test_outside_commits_are_counted(what: str) -> None:
    metal_sim.reset_stats()
    torch.ops.metal_selftest.misuse(what)
    assert metal_sim.stats()["outside_commits"] == 1
    with pytest.raises(RuntimeError):
        torch.mps.synchronize()


DEADLY = {
    "over_release": "over-release: 'release' sent to a released object of class SimBuffer",
    "use_after_release": "use after release: 'contents' sent to a released object",
    "autorelease_without_pool": "autorelease of a SimBuffer without an @autoreleasepool",
    "reenter_queue": "deadlock: the calling block already runs on this queue",
    "throw_out_of_block": "a C++ exception left the block",
}


@beside
def misused() -> dict[str, CompletedProcess[str]]:
    misuse = "torch.ops.metal_selftest.misuse"
    programs = [Program(f"{PRELUDE}{misuse}({what!r})") for what in DEADLY]
    return dict(zip(DEADLY, run_programs(programs), strict=True))


@pytest.mark.parametrize("what", DEADLY)
def test_misuse_that_ends_the_process(what: str, misused: dict[str, CompletedProcess[str]]) -> None:
    assert misused[what].returncode == -6, misused[what].stderr
    assert DEADLY[what] in misused[what].stderr


def test_leaks_can_be_counted() -> None:
    before = metal_sim.live_objects().get("SimBuffer", 0)
    for _ in range(3):
        torch.ops.metal_selftest.misuse("leak")
    assert metal_sim.live_objects()["SimBuffer"] == before + 3
    tensors = [torch.ones(8, device="mps") for _ in range(4)]
    assert metal_sim.live_objects()["SimBuffer"] == before + 7
    del tensors
    assert metal_sim.live_objects()["SimBuffer"] == before + 3


# ---- the translator -----------------------------------------------------------------------------


def test_instantiations_and_their_names() -> None:
    names = torch.ops.metal_selftest.function_names(POSITIVE)
    expected = {
        "scale_float_1",
        "scale_float_2",
        "scale_half_1",
        "scale_bfloat_2",
        "scale_signature",
    }
    assert expected <= set(names)
    assert "scale" not in names


@pytest.mark.parametrize(
    ("kernel", "limits"),
    [
        ("scale_float_1", [256, 32, 256]),
        ("scale_float_2", [64, 32, 512]),
        ("scale_half_1", [256, 32, 128]),
    ],
)
def test_pipeline_limits(kernel: str, limits: list[int]) -> None:
    assert torch.ops.metal_selftest.pipeline_limits(POSITIVE, kernel) == limits


@pytest.mark.parametrize(
    ("kernel", "dtype", "factor"),
    [
        ("scale_float_1", torch.float32, 4.5),
        ("scale_float_2", torch.float32, 4.5),
        ("scale_half_1", torch.float16, 4.5),
        ("scale_bfloat_2", torch.bfloat16, 4.5),
        ("scale_signature", torch.float32, 1.5),
    ],
)
def test_template_kernels(kernel: str, dtype: torch.dtype, factor: float) -> None:
    x = torch.arange(128, dtype=dtype)
    y = torch.full((128,), -1, dtype=dtype, device="mps")
    arguments = scale_arguments(100, 1.5)
    dispatch(
        POSITIVE, kernel, [x.to("mps"), y], groups=2, threads=[32, 2, 1], bytes=arguments,
        constants=[7.0, UINT, 2.0],
    )  # fmt: skip
    expected = (x.float() * factor + 0.5).to(dtype)
    expected[100:] = -1
    assert torch.equal(y.cpu(), expected)


def translate(text: str) -> str:
    return cpp_backend.generate(msl.parse(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel void f(device float* x) {}", "has no [[buffer(n)]]"),
        ("kernel void f(float x [[buffer(0)]]) {}", "must be a pointer or reference to device"),
        ("kernel void f(device float* x [[buffer(0)]], float t [[thread_position_in_grid]]) {}",
         "cannot have type 'float'"),
        ("kernel void f(device float* x [[buffer(0)]]);", "a kernel without a body"),
        ("namespace a { kernel void f(device float* x [[buffer(0)]]) {} }", "inside a namespace"),
        ("void f() { threadgroup float s[4]; }", "may only be declared in a kernel"),
        ("kernel void f() { { threadgroup float s[4]; } }", "outermost block"),
        ("kernel void f() { threadgroup float s = 1; }", "cannot have an initializer"),
        ("kernel void f() { double x = 1; }", "'double': MSL has no double"),
        ("kernel void f() { auto g = [](int i) { return i; }; }", "no lambda"),
        ("kernel void f(texture2d<float> t [[texture(0)]]) {}", "textures are not supported"),
        ("kernel void f(device atomic_uint* x [[buffer(0)]]) {}", "atomics are not supported"),
        ("[[early_fragment_tests]] kernel void f() {}", "attribute [[early_fragment_tests]]"),
        ('template [[host_name("f")]] [[kernel]] decltype(f<int>) f<int>;', "no kernel template"),
        ("vertex float4 f() { return 0; }", "only compute kernels"),
        ("kernel void f() { (; }", "unbalanced"),
        ("kernel void f() {}\nkernel void f() {}", "overloaded"),
        ("#pragma METAL fp contract(none)", "'#pragma METAL fp contract(none)' is not supported"),
        ("#pragma METAL internals : enable", "internals : enable' is not supported"),
        ("constant uint a [[function_constant(0)]];\nconstant uint b[2] = {a, 1};",
         "an array or struct made of function constants is not supported"),
    ],
)  # fmt: skip
def test_unsupported_source_is_an_error_with_its_place(text: str, message: str) -> None:
    with pytest.raises(msl.TranslationError) as error:
        translate(f'# 40 "shaders/x.metal"\n{text}\n')
    assert message in str(error.value)
    assert str(error.value).startswith("shaders/x.metal:4")


def test_translation_keeps_lines() -> None:
    preprocessed = msl.preprocess(SELFTEST / "bugs.metal", [metal_sim.toolchain.compiler()])
    generated = cpp_backend.generate(msl.parse(preprocessed))
    before = preprocessed.splitlines()
    after = generated.splitlines()
    start = after.index("namespace {") + 1
    for offset, line in enumerate(before):
        if "BUG" not in line and line.strip().startswith("y[i] ="):
            assert after[start + offset] == line
    assert BUGS.count("BUG") > 10


def test_adjacent_strings_and_both_kernel_spellings() -> None:
    program = msl.parse(
        """
        template <typename T> [[kernel]] void f(device T* x [[buffer(0)]]) { x[0] = 0; }
        template [[host_name("f" "_" "int")]] [[kernel]] decltype(f<int>) f<int>;
        [[host_name("other")]] kernel void g(device int* x [[buffer(1 + 1)]]) { x[0] = 1; }
        [[max_total_threads_per_threadgroup(64)]] kernel void h(constant int& x [[buffer(0)]]) {}
        """
    )
    assert [name for name, _, _ in program.entry_points()] == ["other", "h", "f_int"]
    kernels = {kernel.name: kernel for kernel in program.kernels}
    assert kernels["g"].parameters[0].index == "1 + 1"
    assert kernels["h"].max_threads == "64"


def test_compiler_messages_name_the_shader() -> None:
    kernel = "kernel void f(device float* x [[buffer(0)]]) { x[0] = y; }"
    source = f'#line 7 "shaders/wrong.metal"\n{kernel}\n'
    with pytest.raises(RuntimeError, match="shaders/wrong.metal:7:.*undeclared identifier 'y'"):
        torch.ops.metal_selftest.function_names(source)
    with pytest.raises(RuntimeError, match="program_source:2: error: 'double'"):
        torch.ops.metal_selftest.function_names("\nkernel void f() { double d = 0; }")
    member = """#line 3 "shaders/formula.h"
        namespace formulas {
        struct Op {
          template <typename Row>
          static float first(Row row) { return row.missing; }
        };
        }
        struct Row {};
        template <typename O, typename T>
        [[kernel]] void f(device T* x [[buffer(0)]]) { x[0] = O::first(Row()); }
        using formulas::Op;
        template [[host_name("f")]] [[kernel]] decltype(f<Op, float>) f<Op, float>;
    """
    with pytest.raises(RuntimeError, match="shaders/formula.h:6:.*no member named 'missing'"):
        torch.ops.metal_selftest.function_names(member)
    implicit = (
        "#include <metal_stdlib>\nusing namespace metal;\n"
        "kernel void f(device bfloat* x [[buffer(0)]]) { x[0] = 1.0f; }"
    )
    with pytest.raises(
        RuntimeError, match="program_source:3:"
    ):  # bfloat needs an explicit conversion
        torch.ops.metal_selftest.function_names(implicit)


# ---- many ops from few templates ----------------------------------------------------------------

ABSENT, AS_INPUT, FLOAT32 = 0, 1, 2


def operand_types(weight: int) -> list[float]:
    return [0.0, UINT, float(AS_INPUT | weight << 2)]


def ops_tensors() -> torch.Tensor:
    """x, y, z and a weight."""
    return torch.randn(4, 192, generator=torch.Generator().manual_seed(3))


def run_op(
    kernel: str, x, y, z, weight: torch.Tensor | None, *, count: int, scale: float
) -> torch.Tensor:
    """Both outputs, NaN where nothing was written."""
    out = torch.full((2, *x.shape), float("nan"), dtype=x.dtype, device="mps")
    kind = ABSENT if weight is None else FLOAT32 if weight.dtype == torch.float32 else AS_INPUT
    tensors = [None if t is None else t.to("mps") for t in (x, y, z, weight)]
    dispatch(
        OPS, kernel, [*tensors, out[0], out[1]], bytes=scale_arguments(count, scale),
        constants=operand_types(kind),
    )  # fmt: skip
    return out.cpu()


@pytest.mark.parametrize("access", ["vector", "scalar"])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_ops_from_one_template(access: str, dtype, weight_dtype) -> None:
    x, y, z, weight = (t.to(dtype) for t in ops_tensors())
    weight = weight.to(weight_dtype)
    count, words = (128, 2) if access == "vector" else (130, 3)
    name = f"row_{words}_{str(dtype).removeprefix('torch.')}_{access}"
    written = torch.arange(192) < count
    a, b, c, w = (t.float() for t in (x, y, z, weight))

    out = run_op(f"weighted_sum_{name}", x, y, z, weight, count=count, scale=1.5)
    expected = ((a + b) * w * 1.5).to(dtype)
    assert torch.equal(out[0][written], expected[written])
    assert out[0][~written].isnan().all() and out[1].isnan().all()

    out = run_op(f"product_and_sum_{name}", x, y, z, None, count=count, scale=1.5)
    first = a * b + c
    expected = torch.stack([first, (first + 0.5 + 0.5) * a]).to(dtype)
    assert torch.equal(out[:, written], expected[:, written])
    assert out[:, ~written].isnan().all()


def test_shader_and_host_share_a_header(tmp_path: Path) -> None:
    program = tmp_path / "ops_host"
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    source = str(SELFTEST / "ops_host.cpp")
    compiler = metal_sim.toolchain.compiler()
    subprocess.run([compiler, *flags, source, "-o", str(program)], check=True)
    x, y, z, weight = ops_tensors()
    data = torch.cat([torch.tensor([1.5]), x, y, z, weight]).numpy().tobytes()
    result = subprocess.run([str(program), "192"], input=data, capture_output=True, check=True)
    host = torch.frombuffer(bytearray(result.stdout), dtype=torch.float32).view(3, 192)
    kernel = "{}_row_3_float32_scalar"
    one = run_op(kernel.format("weighted_sum"), x, y, z, weight, count=192, scale=1.5)
    two = run_op(kernel.format("product_and_sum"), x, y, z, None, count=192, scale=1.5)
    assert torch.equal(host, torch.stack([one[0], *two]))


@pytest.mark.parametrize(("kernel", "result"), [("doubled", [2, 3]), ("squared", [1, 2.25])])
def test_class_templates_as_template_arguments(kernel: str, result: list[float]) -> None:
    x = torch.tensor([1.0, 1.5], dtype=torch.float16, device="mps")
    out = torch.empty_like(x)
    dispatch(OPS, f"map_{kernel}_half", [x, out], threads=2)
    assert out.cpu().tolist() == result


def test_function_constants_as_bit_fields() -> None:
    out = torch.zeros(4, dtype=torch.int32, device="mps")
    dispatch(OPS, "operand_table", [out], threads=4, constants=operand_types(FLOAT32))
    assert out.cpu().tolist() == [AS_INPUT, FLOAT32, 107, 107]
    dispatch(OPS, "operand_table", [out], threads=4, constants=operand_types(ABSENT))
    assert out.cpu().tolist() == [AS_INPUT, 101, 101, 101]


def test_constant_made_of_function_constants_needs_them() -> None:
    source = """
        constant uint types [[function_constant(0)]];
        constant bool has_weight = (types & 3) < 2 && types != 0;
        constant uint both = has_weight ? types + 1 : 0;
        kernel void f(device uint* x [[buffer(0)]],
                      device uint* y [[buffer(1), function_constant(has_weight)]]) {
          x[0] = both;
          if (has_weight) y[0] = 7;
        }
    """
    out = torch.zeros(2, dtype=torch.int32, device="mps")
    x, y = out[:1], out[1:]
    dispatch(source, "f", [x], threads=1, constants=[0.0, UINT, 2.0])
    assert out.cpu().tolist() == [0, 0]
    dispatch(source, "f", [x, y], threads=1, constants=[0.0, UINT, 5.0])
    assert out.cpu().tolist() == [6, 7]
    with pytest.raises(RuntimeError, match="function constant 'types'.*is read but was never set"):
        dispatch(source, "f", [x, y], threads=1)
        torch.mps.synchronize()
    inside = source.replace("constant bool has", "namespace a { constant bool has", 1)
    inside = inside.replace("types != 0;", "types != 0; } using namespace a;", 1)
    with pytest.raises(RuntimeError, match="reads function constant 'types'.*outside namespaces"):
        dispatch(inside, "f", [x], threads=1, constants=[0.0, UINT, 2.0])


def test_math_functions() -> None:
    x = torch.linspace(-4, 4, 64)
    out = torch.empty(64, 11, device="mps")
    dispatch(OPS, "math_functions", [x.to("mps"), out])
    i = torch.arange(64.0)
    d = x.double()
    expected = [
        d.exp(), d.tanh(), x / 3, x.clamp(max=0.5), x.clamp(min=0.5), i.clamp(max=40),
        i.clamp(7, 50), x.clamp(-1, 1), (i - 32).clamp(min=-5), 1 / x,
        1 / (1 + (-d).exp().float()),
    ]  # fmt: skip
    assert torch.equal(out.cpu(), torch.stack([e.float() for e in expected], 1))


# ---- numbers ------------------------------------------------------------------------------------


def convert(kernel: str, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(x.numel(), dtype=dtype, device="mps")
    dispatch(POSITIVE, kernel, [x.to("mps"), out], groups=x.numel() // 64)
    return out.cpu()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bits, where any NaN equals any NaN."""
    integer = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return bool(((a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize(
    ("kernel", "dtype"), [("half_to_float", torch.float16), ("bfloat_to_float", torch.bfloat16)]
)
def test_every_small_float_converts_to_float(kernel: str, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    assert same_bits(convert(kernel, x, torch.float32), x.float())


@pytest.mark.parametrize(
    ("kernel", "dtype"), [("float_to_half", torch.float16), ("float_to_bfloat", torch.bfloat16)]
)
def test_rounding_to_small_floats(kernel: str, dtype: torch.dtype) -> None:
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    bits = values.view(torch.int32)
    # Every value of the type, what lies half-way to the next, and the neighbours of both.
    half_way = 1 << (12 if dtype == torch.float16 else 15)
    candidates = [bits + delta for delta in (-1, 0, 1, half_way - 1, half_way, half_way + 1)]
    generator = torch.Generator().manual_seed(0)
    candidates.append(torch.randint(-(2**31), 2**31 - 1, (2**14,), generator=generator).int())
    x = torch.cat(candidates).view(torch.float32)[:: 5 if dtype == torch.float16 else 7]
    x = x[: x.numel() // 64 * 64]
    assert same_bits(convert(kernel, x, dtype), x.to(dtype))


def test_rounding_of_denormals_and_extremes() -> None:
    special = [0.0, -0.0, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 2.0**-24 * 1.5, 2.0**-14, 65504.0]
    special += [
        65519.99,
        65520.0,
        -65520.0,
        float("inf"),
        -float("inf"),
        float("nan"),
        1e-45,
        3.4e38,
    ]
    x = torch.tensor(special * 4)
    for kernel, dtype in (("float_to_half", torch.float16), ("float_to_bfloat", torch.bfloat16)):
        assert same_bits(convert(kernel, x, dtype), x.to(dtype))


def test_half_arithmetic_rounds_every_step() -> None:
    x = torch.linspace(-4, 4, 64).half()
    expected = ((x * x + 1.0).float() * 0.25).half() - x / 3
    assert same_bits(convert("half_arithmetic", x, torch.float16), expected)


# ---- vectors, simd functions, grids -------------------------------------------------------------


def test_sixteen_byte_words() -> None:
    x = torch.arange(64, dtype=torch.float16)
    out = torch.empty(64, dtype=torch.float16, device="mps")
    dispatch(POSITIVE, "copy_words", [x.to("mps"), out], threads=8)
    expected = x.clone().view(8, 8)
    expected[:, [0, 1]] = expected[:, [1, 0]]
    assert torch.equal(out.cpu(), expected.flatten())


def test_vector_math() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    out = torch.empty(64, device="mps")
    dispatch(POSITIVE, "vector_math", [x.to("mps"), out])
    v = x[:, [1, 0, 2, 3]].clamp(-2, 2) * 2 - 1
    h = v.half().float()
    expected = (h * torch.tensor([1.0, 2, 3, 4])).sum(1) + 0.5 + (v[:, 2] > v[:, 3]).float() + 10
    torch.testing.assert_close(out.cpu(), expected)


@pytest.mark.parametrize("order", ["forward", "reversed", "shuffled"])
def test_simd_functions(order) -> None:
    x = torch.arange(64.0)
    out = torch.empty(64, 12, device="mps")
    with metal_sim.thread_order(order, seed=5):
        dispatch(POSITIVE, "simd_functions", [x.to("mps"), out])
        out = out.cpu()
    groups = x.view(2, SIMD_WIDTH)
    lane = torch.arange(SIMD_WIDTH)

    def per_lane(index: torch.Tensor) -> torch.Tensor:
        return groups[:, index].flatten()

    def per_group(values: torch.Tensor) -> torch.Tensor:
        return values.float().repeat_interleave(SIMD_WIDTH)

    expected = [
        per_group(groups.sum(1)),
        per_group(groups.amax(1)),
        per_group(groups.amin(1)),
        per_lane(lane ^ 5),
        per_lane((lane - 1).clamp(min=0)),
        per_lane(torch.where(lane + 2 > 31, lane, lane + 2)),
        per_lane(31 - lane),
        per_lane(torch.full_like(lane, 7)),
        per_group((groups > 60).any(1)),
        per_group((groups >= 32).all(1)),
        per_group(torch.arange(2)),
        torch.full((64,), 2.0),
    ]
    assert torch.equal(out, torch.stack(expected, 1))


def test_grid_of_threads_with_partial_threadgroups() -> None:
    out = torch.full((5, 13), -1, dtype=torch.int32, device="mps")
    dispatch(
        POSITIVE,
        "grid_positions",
        [out],
        groups=[13, 5, 1],
        threads=[4, 2, 1],
        grid_in_threads=True,
    )
    expected = torch.arange(13) + 100 * torch.arange(5)[:, None]
    assert torch.equal(out.cpu(), expected.int())


def test_parameter_with_a_function_constant() -> None:
    x = torch.arange(64.0, device="mps")
    out = torch.empty(64, device="mps")
    dispatch(POSITIVE, "optional_buffer", [x, out], constants=[1.0, BOOL, 0.0])
    assert torch.equal(out.cpu(), torch.arange(64.0))
    dispatch(POSITIVE, "optional_buffer", [x, out, x], constants=[1.0, BOOL, 1.0])
    assert torch.equal(out.cpu(), 2 * torch.arange(64.0))
    with pytest.raises(RuntimeError, match=r"no buffer is bound to buffer\(2\) 'bias'"):
        dispatch(POSITIVE, "optional_buffer", [x, out], constants=[1.0, BOOL, 1.0])
        torch.mps.synchronize()


# ---- counters -----------------------------------------------------------------------------------


def test_counters() -> None:
    x, y = torch.ones(64, device="mps"), torch.empty(64, device="mps")
    dispatch(BUGS, "write_past_end_fixed", [x, y])  # its library may be there, or not
    torch.mps.synchronize()
    metal_sim.reset_stats()
    dispatch(BUGS, "write_past_end_fixed", [x, y])
    counters = metal_sim.stats()
    assert counters["dispatches"] == counters["functions"] == counters["pipelines"] == 1
    untouched = ("commits", "synchronizations", "outside_commits", "copies", "copied_bytes")
    assert all(counters[name] == 0 for name in (*untouched, "cpu_fallbacks", "libraries"))
    y.cpu()
    counters = metal_sim.stats()
    assert (counters["commits"], counters["copies"], counters["copied_bytes"]) == (1, 1, 256)


def test_fast_math_is_visible() -> None:
    source = "#include <metal_stdlib>\nkernel void f(device float* x [[buffer(0)]]) { x[0] = 1.0; }"
    x = torch.zeros(1, device="mps")
    metal_sim.reset_stats()
    dispatch(source, "f", [x], threads=1)
    assert metal_sim.stats()["libraries"] == 1
    assert metal_sim.stats()["fast_math_libraries"] == 0
    dispatch(source, "f", [x], threads=1, fast_math=True)
    assert metal_sim.stats()["fast_math_libraries"] == 1


# ---- the device ---------------------------------------------------------------------------------


def test_tensors_on_the_device() -> None:
    assert torch.backends.mps.is_available()
    x = torch.arange(12.0).view(3, 4)
    m = x.to("mps")
    assert m.device == torch.device("mps", 0)
    assert torch.equal(m.cpu(), x)
    assert torch.equal(m[1:, 1:].cpu(), x[1:, 1:])
    assert torch.equal(m.t().contiguous().cpu(), x.t())
    assert torch.equal((m @ m.t() + 1).cpu(), x @ x.t() + 1)
    m[1:, 1:].add_(10)
    x[1:, 1:].add_(10)
    assert torch.equal(m.cpu(), x)
    assert "device='mps:0'" in repr(m)
    assert m.sum().item() == x.sum().item()
    assert torch.equal(m[torch.tensor([2, 0])].cpu(), x[[2, 0]])
    assert torch.equal(torch.cat([m, m]).cpu(), torch.cat([x, x]))
    assert torch.equal(m.half().cpu(), x.half())
    assert m.clone().resize_(5, 5).shape == (5, 5)
    out = torch.empty(0, device="mps")
    torch.add(m, m, out=out)
    assert torch.equal(out.cpu(), x + x)
    assert torch.equal(
        torch.nn.Linear(4, 2).to("mps")(m).cpu().isnan(), torch.zeros(3, 2, dtype=torch.bool)
    )


def test_factories_and_empty_tensors() -> None:
    assert torch.zeros(2, 2, device="mps").cpu().tolist() == [[0, 0], [0, 0]]
    assert torch.full((2,), 3, device="mps", dtype=torch.bfloat16).cpu().tolist() == [3, 3]
    assert torch.arange(3, device="mps").cpu().tolist() == [0, 1, 2]
    assert torch.empty(0, 4, device="mps").cpu().shape == (0, 4)
    with pytest.raises(TypeError, match="doesn't support float64"):
        torch.zeros(2, dtype=torch.float64, device="mps")


def test_random_numbers_follow_the_seed() -> None:
    torch.manual_seed(3)
    a = torch.randn(8, device="mps")
    torch.manual_seed(3)
    b = torch.randn(8, device="mps")
    assert torch.equal(a.cpu(), b.cpu())
    assert not torch.equal(a.cpu(), torch.randn(8, device="mps").cpu())
    generator = torch.Generator(device="mps").manual_seed(1)
    c = torch.rand(8, device="mps", generator=generator)
    generator.manual_seed(1)
    assert torch.equal(c.cpu(), torch.rand(8, device="mps", generator=generator).cpu())


def test_cpu_work_goes_on_as_before() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    (x @ x).sum().backward()
    assert x.grad is not None and x.grad.device.type == "cpu"


def test_autograd_and_inference_mode() -> None:
    x = torch.ones(3, device="mps", requires_grad=True)
    (x * 2).sum().backward()
    assert x.grad is not None and x.grad.cpu().tolist() == [2, 2, 2]
    with torch.inference_mode():
        assert (torch.ones(3, device="mps") + 1).is_inference()


def test_operator_without_an_mps_kernel() -> None:
    with torch.library._scoped_library("metal_sim_test", "DEF") as library:
        library.define("op(Tensor x) -> Tensor")
        library.impl("op", lambda x: x + 1, "CPU")
        assert torch.ops.metal_sim_test.op(torch.ones(1)).item() == 2
        with pytest.raises(
            NotImplementedError, match="Could not run 'metal_sim_test::op'.*'MPS' backend"
        ):
            torch.ops.metal_sim_test.op(torch.ones(1, device="mps"))


def test_custom_operator_under_compile_and_opcheck() -> None:
    with torch.library._scoped_library("metal_sim_test", "DEF") as library:
        library.define("half_way(Tensor x) -> Tensor")

        def kernel(x: torch.Tensor) -> torch.Tensor:
            y = torch.empty_like(x)
            dispatch(BUGS, "write_past_end_fixed", [x.contiguous(), y], threads=x.numel())
            return y

        library.impl("half_way", kernel, "MPS")
        torch.library.register_fake("metal_sim_test::half_way", torch.empty_like, lib=library)
        op = torch.ops.metal_sim_test.half_way
        x = torch.randn(8, 4).to("mps")
        compiled = torch.compile(
            lambda x: op(x * 2 + 1).relu(), backend="aot_eager", fullgraph=True
        )
        assert torch.equal(compiled(x).cpu(), (x.cpu() * 2 + 1).relu())
        torch.library.opcheck(op.default, (x,))


def test_huge_storage_costs_only_what_is_touched() -> None:
    storage = torch.empty(20 << 30, dtype=torch.uint8, device="mps")
    storage[-64:].fill_(7)
    assert storage[-65:].cpu().tolist() == [255] + [7] * 64
    assert storage[torch.tensor([(20 << 30) - 1])].item() == 7
    floats = storage.view(torch.float32)
    floats[-64:] = torch.arange(64.0, device="mps")
    y = torch.empty(64, device="mps")
    dispatch(BUGS, "write_past_end_fixed", [floats[-64:], y])
    assert torch.equal(y.cpu(), torch.arange(64.0))
    with open("/proc/self/status") as status:
        resident = next(line for line in status if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 8 << 20  # KiB


@beside
def left_behind() -> CompletedProcess[str]:
    program = """
x = torch.ones(64, device="mps")
torch.ops.metal_selftest.misuse("leak")
y = (x + 1).relu()
print("end")
"""
    return run_alone([sys.executable, "-c", PRELUDE + program])


def test_process_ends_cleanly_with_work_left(left_behind: CompletedProcess[str]) -> None:
    assert (left_behind.returncode, left_behind.stdout) == (0, "end\n"), left_behind.stderr


def test_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("METAL_SIM_CLANG", raising=False)
    metal_sim.toolchain.compiler.cache_clear()
    try:
        with pytest.raises(metal_sim.MissingTool, match="apt-get install clang-19"):
            metal_sim.check_tools()
    finally:
        metal_sim.toolchain.compiler.cache_clear()
