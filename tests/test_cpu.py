"""What holds for the CPU kernels alone: one object per instruction set, chosen at run time."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from beside import beside, run, side_by_side
from oracle import assert_same_bits, assert_within
from parallel import threads
from steps import Bounds, Options
from tensors import randn, type_id

import torch_mlxnorm

CHECK = """
import hashlib
import torch
from ops import OPS, check
from oracle import assert_same_bits
from torch_mlxnorm import add_rms_norm, rms_norm

capability = torch.backends.cpu.get_cpu_capability()
assert capability == {capability!r} or (capability, {capability!r}) == ("NO AVX", "DEFAULT")
bits = hashlib.sha256()
for op in OPS.values():
    rounded = dict(round_intermediates=True) if op.rounds else dict()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for dim in (1, 5, 16, 17, 31, 33, 64, 100, 2816):
            options = [dict(), dict(casting_mode="llama", weight_offset=1.0, **rounded)]
            if op.activates:
                options += [dict(activation=name) for name in ("silu", "gelu_tanh", "sigmoid")]
            for chosen in options:
                for result in check(op.call((5,), dim, dtype, **chosen)):
                    bits.update(result.view(torch.uint8).numpy().tobytes())
# Large and aligned enough to be written past the caches.
x = torch.randn(4100, 2048)
assert_same_bits(rms_norm(x, None)[4000:], rms_norm(x[4000:], None))
for dtype in (torch.float16, torch.bfloat16):
    y = x.repeat(2, 1).to(dtype)
    assert_same_bits(rms_norm(y, None)[8000:], rms_norm(y[8000:], None))
    both = zip(add_rms_norm(y, y, None), add_rms_norm(y[8000:], y[8000:], None))
    for large, small in both:
        assert_same_bits(large[8000:], small)
print(bits.hexdigest())
"""

SETS = ["DEFAULT", "AVX2", "AVX512"] if platform.machine() == "x86_64" else ["DEFAULT"]


def capability() -> str:
    name = torch.backends.cpu.get_cpu_capability()
    return "DEFAULT" if name == "NO AVX" else name  # as PyTorch 2.8 calls it


def has(wanted: str) -> bool:
    """Whether this processor has an instruction set, as far as is known."""
    return capability() not in SETS or SETS.index(wanted) <= SETS.index(capability())


@beside
def checked() -> dict[str, CompletedProcess[str]]:
    """Values with each instruction set, and a digest of all the bits."""

    def check(wanted: str) -> CompletedProcess[str]:
        paths = [str(Path(__file__).parent), str(Path(torch_mlxnorm.__file__).parents[1])]
        environment = {
            "ATEN_CPU_CAPABILITY": wanted.lower(),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        command = [sys.executable, "-c", CHECK.format(capability=wanted)]
        return run(command, environment=environment)

    present = [wanted for wanted in SETS if has(wanted)]
    return dict(zip(present, side_by_side(check, present), strict=True))


def digest(wanted: str, checked: dict[str, CompletedProcess[str]]) -> str:
    if not has(wanted):
        pytest.skip(f"this processor has no {wanted}")
    assert checked[wanted].returncode == 0, checked[wanted].stderr
    return checked[wanted].stdout


@pytest.mark.parametrize("wanted", SETS)
def test_every_instruction_set(wanted: str, checked: dict[str, CompletedProcess[str]]) -> None:
    assert len(digest(wanted, checked).strip()) == 64


@pytest.mark.skipif("AVX512" not in SETS, reason="of x86-64")
def test_instruction_sets_with_fma_give_the_same_bits(
    checked: dict[str, CompletedProcess[str]],
) -> None:
    assert digest("AVX2", checked) == digest("AVX512", checked)


def foreign_weak_symbols(path: Path, isa: str) -> list[str]:
    """Inline functions that the linker may merge with those of objects for other processors: all
    but those in a namespace named after the instruction set."""
    symbols = subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout
    own = f"{len(isa)}{isa}"
    weak = (line.split()[-1] for line in symbols.splitlines() if line.split()[-2] in "WVu")
    return [name for name in weak if own not in name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=type_id)
@pytest.mark.parametrize("dim", [33, 64, 250])
def test_short_rows_are_summed_as_in_float32(dim: int, dtype: torch.dtype) -> None:
    """Element i goes to partial sum i % 64 however a block holds its elements. In so many rows a
    difference in the last place of the sum shows."""
    x = randn(100_000, dim, dtype=dtype)
    expected = torch_mlxnorm.rms_norm(x.float(), None).to(dtype)
    assert_same_bits(torch_mlxnorm.rms_norm(x, None), expected)


def test_memory_just_mapped_gets_the_bits_of_memory_in_use() -> None:
    """Large results are written past the caches, unless their memory is fresh."""
    x, weight = randn(8192, 1024), randn(1024)
    out = torch.frombuffer(mmap.mmap(-1, x.nbytes), dtype=x.dtype).view_as(x)
    torch.ops.mlxnorm.rms_norm.out(x, weight, out=out)
    fresh = out.clone()
    torch.ops.mlxnorm.rms_norm.out(x, weight, out=out.fill_(float("nan")))
    assert_same_bits(out, fresh)
    assert_same_bits(out[-1:], torch_mlxnorm.rms_norm(x[-1:], weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=type_id)
@pytest.mark.parametrize("rows", [2, 3, 9, 17])
def test_rows_have_the_bits_of_one_row(rows: int, dtype: torch.dtype) -> None:
    """Of several rows, weights are unpacked and short rows summed together."""
    for dim in (33, 128, 512, 520, 2816):
        for weight_dtype in (torch.float32, torch.float16, torch.bfloat16):
            x, weight = randn(rows, dim, dtype=dtype), randn(dim, dtype=weight_dtype)
            for casting_mode, offset in (("gemma", 1.0), ("llama", 0.0)):
                options = {"weight_offset": offset, "casting_mode": casting_mode}
                y = torch_mlxnorm.rms_norm(x, weight, **options)
                one = [torch_mlxnorm.rms_norm(row[None], weight, **options) for row in x]
                assert_same_bits(y, torch.cat(one))


@pytest.mark.skipif("AVX512" not in SETS, reason="of x86-64")
@pytest.mark.parametrize("count", [1, 2])
def test_more_rows_than_2_to_the_22(count: int) -> None:
    """Where torch.nn.functional.rms_norm on MPS leaves out rows (docs/image-models.md)."""
    rows, dim = 2**22 + 1, 128
    row, last = randn(2, 1, dim, dtype=torch.bfloat16)
    x = torch.cat([row.expand(rows - 1, dim), last])
    with threads(count):
        torch_mlxnorm.rms_norm(x, None, out=x)
    assert (x[:-1] == torch_mlxnorm.rms_norm(row, None)).all()
    assert_same_bits(x[-1:], torch_mlxnorm.rms_norm(last, None))


def test_exp_is_sleefs() -> None:
    """By way of silu, which PyTorch has from Sleef: the kernels' own exp has the same bits. Every
    251st float32 of all there are, NaN and infinity among them."""
    one = torch.tensor(1.0)
    for first in range(-(2**31), 2**31, 2**28):
        gate = torch.arange(first, first + 2**28, 251).to(torch.int32).view(torch.float32)
        out = torch_mlxnorm.gated_rms_norm(
            one.expand_as(gate), gate, None, eps=0.0, norm_before_gate=True
        )
        expected = torch.nn.functional.silu(gate)
        assert torch.equal(out.isnan(), expected.isnan())
        assert_same_bits(out.nan_to_num(1.5), expected.nan_to_num(1.5))


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF symbols")
@pytest.mark.parametrize("isa", SETS[1:])
def test_isa_objects_share_no_inline_functions(isa: str) -> None:
    build = Path(__file__).parents[1] / "build"
    name = f"torch-{torch.__version__}-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    objects = sorted(build.glob(f"{name}*/isa/*_{isa}.o"))
    if not objects:
        pytest.skip(f"needs the objects of a build in this checkout: none in {build}/{name}")
    for path in objects:
        assert not foreign_weak_symbols(path, isa), path.name


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF symbols")
def test_a_shared_inline_function_is_found(tmp_path: Path) -> None:
    source = tmp_path / "planted.cpp"
    source.write_text(
        "inline int shared(int i) { return i; }\n"
        "namespace AVX2 { inline int own(int i) { return i; } }\n"
        "int (*one)(int) = shared, (*two)(int) = AVX2::own;\n"
    )
    compiler = os.environ.get("CXX", "c++").split()
    subprocess.run([*compiler, "-c", source, "-o", tmp_path / "planted.o"], check=True)
    assert foreign_weak_symbols(tmp_path / "planted.o", "AVX2") == ["_Z6sharedi"]


HARNESS = """
#include "csrc/cpu/arguments.h"

using namespace mlxnorm;

extern "C" void rms_norm(const float* x, float* out, int64_t rows, int64_t dim) {
  NormLayout layout{};
  layout.dtype = DType::float32;
  layout.rows = rows;
  layout.dim = dim;
  layout.tensor_types = pack_tensor_type(0, kFloat32);
  layout.tensors[0] = layout.results[0] = evenly_spaced(dim);
  layout.tensors[1] = layout.tensors[2] = evenly_spaced(0);
  cpu::NormArguments arguments{layout, {1e-6f, -0.0f}};
  arguments.tensors[0] = x;
  arguments.results[0] = out;
  cpu::AVX2::rms_norm_kernel(arguments).run(arguments, 0, rows, nullptr);
}
"""


FOLDER = tempfile.TemporaryDirectory()


@beside
def with_undefined_lanes() -> Path:
    """rms_norm built with PyTorch 2.8's constructor of vectors, and with undefined variables filled
    so that they show."""
    root, torch_root, folder = Path(__file__).parents[1], Path(torch.__file__).parent, FOLDER.name
    shutil.copytree(torch_root / "include/ATen/cpu/vec", f"{folder}/ATen/cpu/vec")
    vectors = Path(folder, "ATen/cpu/vec/vec256/vec256_float.h")
    text, replaced = re.subn(
        r"Vectorized\(\) \{\s*values = _mm256_setzero_ps\(\);\s*\}",
        "Vectorized() {}",
        vectors.read_text(),
    )
    assert replaced == 1 or "Vectorized() {}" in text
    vectors.write_text(text)
    harness, library = Path(folder, "harness.cpp"), Path(folder, "old.so")
    harness.write_text(HARNESS)
    command = [*os.environ.get("CXX", "c++").split(), "-O1", "-std=c++20", "-shared", "-fPIC", "-w"]
    command += ["-ftrivial-auto-var-init=pattern", "-mavx2", "-mfma", "-mf16c"]
    command += ["-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2"]
    command += [f"-I{folder}", f"-I{root}", f"-isystem{torch_root / 'include'}"]
    command += [str(harness), str(root / "csrc/cpu/isa/rms_norm.cpp")]
    command += [f"-L{torch_root / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(library)]
    done = run(command)
    assert done.returncode == 0, done.stderr
    return library


@pytest.mark.skipif("AVX2" not in SETS, reason="of x86-64")
@pytest.mark.skipif(capability() == "DEFAULT", reason="this processor has no AVX2")
def test_vectors_that_do_not_start_at_zero(with_undefined_lanes: Path) -> None:
    """PyTorch 2.8's Vectorized<float>() leaves the lanes undefined; later ones are zero."""
    x = torch.randn(3, 100)
    out = torch.empty_like(x)
    rms_norm = ctypes.CDLL(str(with_undefined_lanes)).rms_norm
    rms_norm.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    rms_norm(x.data_ptr(), out.data_ptr(), 3, 100)
    assert_within(out, Bounds(Options(), torch.float32).norm(x, None))
