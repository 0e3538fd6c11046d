"""The shaders as CUDA (translator/cuda_backend.py): they translate, and NVRTC compiles them. What
they compute is seen where there is an NVIDIA GPU: `make gpu-check`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from translator import cuda_backend, msl, nvrtc

from torch_mlxnorm.bench import plain

TESTS = Path(__file__).resolve().parent
SHADERS = sorted((TESTS.parent / "shaders").glob("*.metal"))
SELFTEST = TESTS / "metal_sim" / "selftest"
ARCHITECTURE = "sm_80"

# By csrc's abi.h: all tensors and results in float32, the weights of a row's dtype, no options.
CONSTANTS = {0: "0x5555u", 1: "0u", 2: "0u", 3: "0u", 4: "32u", 5: "0x55u", 6: "1u"}
CONSTANTS |= {7: "true", 8: "8u"}  # threads of a column
CONSTANTS |= {number: "true" for number in range(9, 21)}


def translated(shader: Path, defines: Sequence[str] = ()) -> cuda_backend.Translated:
    preprocessor = shutil.which("c++") or shutil.which("clang++-19")
    if preprocessor is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    return cuda_backend.translate(
        msl.parse(msl.preprocess(shader, [preprocessor], defines=defines))
    )


@pytest.fixture(scope="module")
def compiler() -> None:
    try:
        nvrtc.library()
    except nvrtc.MissingTool as error:
        pytest.skip(str(error))


def names_of(shader: cuda_backend.Translated) -> list[str]:
    return [name for name, _, _ in shader.program.entry_points()]


@pytest.mark.parametrize("shader", SHADERS, ids=lambda path: path.stem)
def test_compiles(shader: Path, compiler: None) -> None:
    """Rows in registers and longer ones; `make gpu-check` compiles all kernels, for many calls."""
    program = translated(shader)
    kinds = ["row_2_float16_scalar", "loop_bfloat16_vector"]
    if "channel" in shader.stem:
        kinds += ["columns_3_bfloat16_vector", "long_columns_float32_vector"]
    names = [f"{shader.stem}_{kind}" for kind in kinds]
    assert set(names) < set(names_of(program))
    cubin = nvrtc.compile_cubin(
        cuda_backend.generate(program, names, CONSTANTS), ARCHITECTURE, bytes_buffer=12
    )
    for number in range(len(names)):
        assert cuda_backend.entry_name(number).encode() + b"\0" in cubin


def test_the_plain_kernel_compiles(compiler: None) -> None:
    program = translated(plain.SHADER, ["READS=2", "WRITES=3", "PER_THREAD=4"])
    source = cuda_backend.generate(program, ["plain"], {})
    assert nvrtc.compile_cubin(source, ARCHITECTURE, bytes_buffer=2)


@pytest.mark.parametrize("name", ["positive", "ops", "bugs"])
def test_foreign_shaders_compile(name: str, compiler: None) -> None:
    program = translated(SELFTEST / f"{name}.metal")
    constants = {number: "1u" for number in range(10)}
    source = cuda_backend.generate(program, names_of(program), constants)
    assert nvrtc.compile_cubin(source, ARCHITECTURE)


def test_errors_name_the_shader(tmp_path: Path, compiler: None) -> None:
    shader = tmp_path / "wrong.metal"
    shader.write_text(
        "#include <metal_stdlib>\nusing namespace metal;\n"
        "kernel void f(device float* x [[buffer(0)]]) {\n  x[0] = nothing;\n}\n"
    )
    source = cuda_backend.generate(translated(shader), ["f"], {})
    with pytest.raises(nvrtc.CompilationError, match=r'(?s)\(4\): error.*"nothing" is undefined'):
        nvrtc.compile_cubin(source, ARCHITECTURE)


def test_a_constant_without_a_value_does_not_compile(compiler: None) -> None:
    program = translated(SELFTEST / "positive.metal")
    source = cuda_backend.generate(program, ["optional_buffer"], {7: "1u"})
    with pytest.raises(nvrtc.CompilationError, match="ConstantValue<1>"):
        nvrtc.compile_cubin(source, ARCHITECTURE)


def test_an_unknown_kernel_is_an_error() -> None:
    with pytest.raises(msl.TranslationError, match="there is no kernel 'nothing'"):
        cuda_backend.generate(cuda_backend.translate(msl.parse("")), ["nothing"], {})
