"""csrc/mps/plan.cpp and pipeline_key.cpp: the choice of Metal kernel and geometry, and what tells
pipelines apart, in plain C++ without a GPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from ops import OPS
from translator import msl

ROOT = Path(__file__).parents[1]
DTYPES = ["float32", "float16", "bfloat16"]
PER_WORD = {"float32": 4, "float16": 8, "bfloat16": 8}
KERNELS = ["simd", "row", "loop"]

BINDINGS = r"""
#include <cstring>
#include <stdexcept>

#include "csrc/mps/pipeline_key.h"

using namespace mlxnorm;
using namespace mlxnorm::mps;

extern "C" const char* plan(int dtype, int64_t rows, int64_t dim, int aligned, const char* choice,
                            uint32_t* result, char* name) {
  static thread_local std::string error;
  try {
    const Plan p =
        plan_rows(DType(dtype), rows, dim, aligned != 0, parse_access(choice));
    const uint32_t values[] = {uint32_t(p.kernel),     p.words_per_thread,
                               p.lanes_per_row,        p.threads,
                               p.rows_per_threadgroup, p.vector,
                               p.prefetch};
    std::memcpy(result, values, sizeof(values));
    std::strcpy(name, function_name(Op::rms_norm, p, DType(dtype)).c_str());
    return nullptr;
  } catch (const std::invalid_argument& e) {
    error = e.what();
    return error.c_str();
  }
}

extern "C" void instantiation_of(const char* op, int dtype, int64_t dim, int aligned, char* line) {
#define SET(name) \
  if (std::strcmp(op, #name) == 0) { \
    const Plan p = plan_rows(DType(dtype), 1, dim, aligned != 0, Access::automatic); \
    std::strcpy(line, instantiation(Op::name, p, DType(dtype)).c_str()); \
  }
  MLXNORM_FOR_EACH_OP(SET)
}

extern "C" int dispatch_rows(int dtype, int64_t rows, int64_t dim, int most, int64_t* result) {
  const Plan p = plan_rows(DType(dtype), rows, dim, true, Access::automatic);
  const std::vector<Dispatch> all = dispatches(p, {&rows, 1});
  for (int i = 0; i < most && i < int(all.size()); ++i) {
    result[3 * i] = int64_t(all[i].shares[0].first_row);
    result[3 * i + 1] = all[i].shares[0].rows;
    result[3 * i + 2] = all[i].threadgroups;
  }
  return int(all.size());
}

// Of fields in the order of PipelineKey; 0 when one of them has no room.
extern "C" uint64_t key_of_fields(const uint32_t* f) {
  PipelineKey key{};
  key.op = Op(f[0]);
  key.plan.kernel = KernelKind(f[1]);
  key.plan.words_per_thread = f[2];
  key.plan.lanes_per_row = f[3];
  key.plan.vector = f[4] != 0;
  key.plan.prefetch = f[5] != 0;
  key.dtype = DType(f[6]);
  key.tensor_types = f[7];
  key.scalars = f[8];
  key.choices = f[9];
  try {
    return 1 + packed(key);
  } catch (const std::logic_error&) {
    return 0;
  }
}

extern "C" float inverse(int64_t dim) {
  return inverse_of(dim);
}

extern "C" int aligned(const int64_t* strides, int64_t byte_offset, int type, int dtype) {
  return rows_aligned({strides[0], strides[1], strides[2], 1, 1}, byte_offset,
                      tensor_type_of(DType(type)), DType(dtype));
}
"""


@dataclass(frozen=True)
class Plan:
    kernel: str
    words_per_thread: int
    lanes_per_row: int
    threads: int
    rows_per_threadgroup: int
    vector: bool
    prefetch: bool
    name: str


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("plan")
    (directory / "bindings.cpp").write_text(BINDINGS)
    command = [*os.environ.get("CXX", "c++").split(), "-std=c++20", "-Wall", "-Wextra", "-Werror"]
    command += ["-shared", "-fPIC", f"-I{ROOT}", str(directory / "bindings.cpp")]
    command += [str(ROOT / f"csrc/mps/{name}.cpp") for name in ("plan", "pipeline_key")]
    command += ["-o", str(directory / "plan.so")]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(directory / "plan.so"))
    loaded.plan.restype = ctypes.c_char_p
    loaded.plan.argtypes = [
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_char_p,
    ]
    loaded.instantiation_of.argtypes = [
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_char_p,
    ]
    loaded.dispatch_rows.argtypes = [
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    loaded.key_of_fields.argtypes = [ctypes.c_void_p]
    loaded.key_of_fields.restype = ctypes.c_uint64
    loaded.inverse.argtypes, loaded.inverse.restype = [ctypes.c_int64], ctypes.c_float
    loaded.aligned.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int]
    return loaded


def plan(
    library: ctypes.CDLL,
    dtype: str,
    rows: int,
    dim: int,
    *,
    aligned: bool = True,
    choice: str | None = None,
) -> Plan:
    values, name = (ctypes.c_uint32 * 7)(), ctypes.create_string_buffer(128)
    wanted = None if choice is None else choice.encode()
    error = library.plan(DTYPES.index(dtype), rows, dim, aligned, wanted, values, name)
    if error is not None:
        raise ValueError(error.decode())
    kernel, *sizes, vector, prefetch = values
    return Plan(KERNELS[kernel], *sizes, bool(vector), bool(prefetch), name.value.decode())


@pytest.mark.parametrize("op", OPS)
def test_instantiations_are_those_of_a_metallib(
    library: ctypes.CDLL, op: str, tmp_path: Path
) -> None:
    """A metallib has every kernel of an op; source that is compiled at run time has none but for
    the lines that the host adds, which name and make the same ones."""
    shader = ROOT / "shaders" / f"{op}.metal"

    def instantiations(source: Path, *defines: str) -> dict[str, tuple[str, str]]:
        text = msl.preprocess(source, os.environ.get("CXX", "c++").split(), defines=defines)
        return {i.host_name: (i.kernel, i.arguments) for i in msl.parse(text).instantiations}

    lines = set()
    for dtype, dim, aligned in product(range(3), (8, 2816, 32000, 2**20), (0, 1)):
        line = ctypes.create_string_buffer(256)
        dim = dim if dtype != DTYPES.index("float32") else dim // 2
        library.instantiation_of(op.encode(), dtype, dim, aligned, line)
        lines.add(line.value.decode())
    source = tmp_path / "source.metal"
    source.write_text(f'#include "{shader}"\n')
    assert not instantiations(source, "INSTANTIATE_AT_RUN_TIME")
    source.write_text(source.read_text() + "".join(lines))
    expected = instantiations(shader)
    assert len(lines) == len(expected) == 24
    assert instantiations(source, "INSTANTIATE_AT_RUN_TIME") == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_cover_every_row(library: ctypes.CDLL, dtype: str) -> None:
    """For every dim up to past the longest register row, and few and many rows."""
    for dim in [*range(1, 70000, 7), *(2**k + d for k in range(3, 31) for d in (-1, 0, 1))]:
        words = -(-dim // PER_WORD[dtype])
        for rows in (1, 3, 100_000):
            p = plan(library, dtype, rows, dim)
            assert p.threads % 32 == 0 and 32 <= p.threads <= 1024
            if p.kernel == "simd":
                assert p.lanes_per_row in (1, 2, 4, 8, 16, 32)
                assert p.rows_per_threadgroup * p.lanes_per_row == p.threads
                assert p.lanes_per_row * p.words_per_thread >= words
            elif p.kernel == "row":
                assert p.rows_per_threadgroup == 1
                assert p.threads * p.words_per_thread >= words
            else:
                assert p.rows_per_threadgroup == 1 and words > 4096


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_depends_on_dim_and_dtype_alone(library: ctypes.CDLL, dtype: str) -> None:
    """What decides the order of the sum is the same for any rows, alignment and choice."""

    def order(p: Plan) -> tuple[object, ...]:
        lanes = p.lanes_per_row if p.kernel == "simd" else p.threads
        return p.kernel, p.words_per_thread, lanes

    for dim in (1, 33, 128, 500, 2816, 8192, 16392, 40000):
        expected = order(plan(library, dtype, 1, dim))
        for rows in (1, 2, 31, 33, 10_000, 2**33):
            assert order(plan(library, dtype, rows, dim)) == expected
            assert order(plan(library, dtype, rows, dim, aligned=False)) == expected
            assert order(plan(library, dtype, rows, dim, choice="scalar")) == expected


# How many values each field of a pipeline's key has: ops, kernels, words, lanes, vector, prefetch,
# dtypes, types of 8 tensors, scalars among them, ten choices.
KEY_FIELDS = [len(OPS), 3, 5, 33, 2, 2, 3, 1 << 16, 1 << 8, 1 << 20]


def test_pipeline_keys_do_not_alias(library: ctypes.CDLL) -> None:
    """Each value of a field gives a key of its own beside any others. One too many is told."""

    def key(fields: list[int]) -> int:
        return library.key_of_fields((ctypes.c_uint32 * len(fields))(*fields))

    most = [count - 1 for count in KEY_FIELDS]
    keys = {key([0] * len(most)), key(most)}
    made = 2
    for i, count in enumerate(KEY_FIELDS):
        for base in ([0] * len(most), most):
            for value in (v for v in {1, 2, count // 2, count - 2} if 0 < v < count - 1):
                keys.add(key([*base[:i], value, *base[i + 1 :]]))
                made += 1
        is_flag = count == 2
        if not is_flag:
            assert key([*most[:i], count, *most[i + 1 :]]) == 0
    assert len(keys) == made and 0 not in keys


def test_known_plans(library: ctypes.CDLL) -> None:
    hidden = plan(library, "bfloat16", 1, 2816)
    assert hidden.name == "rms_norm_row_2_bfloat16_vector"
    assert (hidden.threads, hidden.prefetch) == (192, True)
    prefill = plan(library, "bfloat16", 2048, 2816)
    assert (prefill.threads, prefill.prefetch) == (192, False)
    heads = plan(library, "float16", 65536, 128)
    assert heads.name == "rms_norm_simd_2_float16_vector"
    assert (heads.lanes_per_row, heads.rows_per_threadgroup) == (8, 32)
    assert plan(library, "float16", 1, 128).threads == 32
    assert plan(library, "float32", 5, 16384).name == "rms_norm_row_4_float32_vector"
    assert plan(library, "float32", 5, 16388).name == "rms_norm_loop_float32_vector"


def test_vector_access_needs_whole_aligned_words(library: ctypes.CDLL) -> None:
    assert plan(library, "float32", 1, 36).vector
    assert not plan(library, "float16", 1, 36).vector
    assert not plan(library, "float32", 1, 36, aligned=False).vector
    assert plan(library, "float32", 1, 36, choice="vector").vector
    assert plan(library, "float32", 1, 36, choice="").vector
    assert not plan(library, "float32", 1, 36, choice="scalar").vector
    with pytest.raises(ValueError, match="TORCH_MLXNORM_ACCESS=vector needs rows"):
        plan(library, "float32", 1, 35, choice="vector")
    with pytest.raises(ValueError, match='TORCH_MLXNORM_ACCESS must be .* got "fast"'):
        plan(library, "float32", 1, 36, choice="fast")


def test_the_inverse_of_a_dim_is_rounded_once(library: ctypes.CDLL) -> None:
    """1 / float(dim), rounded twice, is another float for a quarter of the dims above 2^24."""
    long_rows = [*range(2**24 + 1, 2**24 + 200, 2), 2**31 - 1, 2**31]
    for dim in [*range(1, 300), *long_rows]:
        assert library.inverse(dim) == ctypes.c_float(1 / dim).value, dim


@pytest.mark.parametrize(
    ("dtype", "dim"), [("float32", 1), ("float16", 128), ("float32", 4096), ("float32", 10**6)]
)
def test_huge_tensors_take_several_dispatches(library: ctypes.CDLL, dtype: str, dim: int) -> None:
    """Together they hold every row once; each stays within what Metal counts in 32 bits."""
    most = 4096
    for rows in (1, 37, 2**31, 2**31 + 1, 2**32 + 5):
        p = plan(library, dtype, rows, dim)
        values = (ctypes.c_int64 * (3 * most))()
        count = library.dispatch_rows(DTYPES.index(dtype), rows, dim, most, values)
        assert 1 <= count <= most
        expected_row = 0
        for i in range(count):
            first_row, dispatched, threadgroups = values[3 * i : 3 * i + 3]
            assert first_row == expected_row
            assert 0 <= threadgroups * p.rows_per_threadgroup - dispatched < p.rows_per_threadgroup
            assert threadgroups * p.threads <= 2**31
            expected_row += dispatched
        assert expected_row == rows
        assert count == 1 or rows * p.threads > 2**31


@pytest.mark.parametrize(
    ("strides", "byte_offset", "type", "activations", "expected"),
    [
        ((2816, 0, 0), 0, "float16", "float16", True),
        ((2816, 0, 0), 16, "float16", "float16", True),
        ((2816, 0, 0), 2, "float16", "float16", False),
        ((33, 0, 0), 0, "float32", "float32", False),
        ((36, 0, 0), 0, "float32", "float32", True),
        ((36, 0, 0), 0, "float16", "float16", False),
        ((64, 9, 64), 0, "float32", "float32", False),
        ((64, 64, 3), 0, "float32", "float32", False),
        # Beside float32, what belongs to a word is 8 bytes of 16-bit elements.
        ((36, 0, 0), 8, "float16", "float32", True),
        ((36, 0, 0), 4, "bfloat16", "float32", False),
        ((34, 0, 0), 0, "bfloat16", "float32", False),
        # Beside 16 bits, it is two words of float32.
        ((36, 0, 0), 16, "float32", "bfloat16", True),
        ((36, 0, 0), 8, "float32", "bfloat16", False),
        ((36, 0, 0), 8, "float16", "bfloat16", False),
    ],
)
def test_alignment_of_rows(
    library: ctypes.CDLL,
    strides: tuple[int, int, int],
    byte_offset: int,
    type: str,
    activations: str,
    expected: bool,
) -> None:
    values = (ctypes.c_int64 * 3)(*strides)
    dtypes = DTYPES.index(type), DTYPES.index(activations)
    assert bool(library.aligned(values, byte_offset, *dtypes)) is expected
