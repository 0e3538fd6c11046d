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
KERNELS = ["simd", "row", "loop", "columns", "long_columns"]
PREFETCHES = ["nothing", "activations", "everything"]
# Of each op, dtype and access: kernels and words of a thread.
VARIANTS = [("simd", 1), ("simd", 2), ("row", 1), ("row", 2), ("row", 4), ("loop", 0)]
# And of ops that have channels.
COLUMN_VARIANTS = [*(("columns", octets) for octets in (1, 2, 3, 4)), ("long_columns", 0)]
OPS_BY_NUMBER = list(OPS)
ACTIVATED, INTERLEAVED = 1, 1 << 10  # choices: pack_choice(kActivation, 1), (kInterleaved, 1)

BINDINGS = r"""
#include <cstring>
#include <stdexcept>

#include "csrc/mps/pipeline_key.h"

using namespace mlxnorm;
using namespace mlxnorm::mps;

// Of an op whose usual tensors have the dtype and are there.
static Plan plan_of(Op id, DType dtype, int64_t rows, int64_t dim, bool aligned, uint32_t choices,
                    Access access) {
  const OpTable& op = table_of(id);
  uint32_t types = 0;
  for (size_t t = 0; t < op.tensors.size(); ++t) {
    if (op.tensors[t].passing != Passing::extra) {
      types |= pack_tensor_type(int(t), tensor_type_of(dtype));
    }
  }
  return plan_rows({op, dtype, rows, dim, tensors_of_words(op, types, 0, false), choices, aligned},
                   access);
}

extern "C" const char* plan(int op, int dtype, int64_t rows, int64_t dim, int aligned,
                            uint32_t choices, const char* choice, uint32_t* result, char* name) {
  static thread_local std::string error;
  try {
    const Plan p = plan_of(Op(op), DType(dtype), rows, dim, aligned != 0, choices,
                           parse_access(choice));
    const uint32_t values[] = {uint32_t(p.kernel),     p.words_per_thread,
                               p.lanes_per_row,        p.threads,
                               p.rows_per_threadgroup, p.vector,
                               uint32_t(p.prefetch)};
    std::memcpy(result, values, sizeof(values));
    std::strcpy(name, function_name(Op(op), p, DType(dtype)).c_str());
    return nullptr;
  } catch (const std::invalid_argument& e) {
    error = e.what();
    return error.c_str();
  }
}

extern "C" void instantiation_of(int op, int dtype, int kernel, int words, int vector, char* line) {
  Plan p{};
  p.kernel = KernelKind(kernel);
  p.words_per_thread = uint32_t(words);
  p.vector = vector != 0;
  std::strcpy(line, instantiation(Op(op), p, DType(dtype)).c_str());
}

extern "C" int dispatch_rows(int dtype, int64_t rows, int64_t dim, int most, int64_t* result) {
  const Plan p =
      plan_of(Op::rms_norm, DType(dtype), rows, dim, true, 0, Access::automatic);
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
  key.plan.lanes_per_row = 1u << f[3];
  key.plan.vector = f[4] != 0;
  key.plan.prefetch = Prefetch(f[5]);
  key.dtype = DType(f[6]);
  key.tensor_types = f[7];
  key.scalars = f[8];
  key.choices = f[9];
  key.spacing = Spacing(f[10]);
  key.holds_pairs = f[11] != 0;
  key.plan.threads_per_column = 1u << f[12];
  try {
    return 1 + packed(key);
  } catch (const std::logic_error&) {
    return 0;
  }
}

// Where rows of three layouts lie, each {stride0, stride1, stride2, size1, size2}, before and after
// they are made alike; or 0, 1 or 2: what spacing_of says.
extern "C" int spacing(const int64_t* layouts, int64_t rows, int64_t row, int64_t* offsets) {
  NormLayout layout{};
  layout.rows = rows;
  for (int t = 0; t < 3; ++t, layouts += 5) {
    layout.tensor_types |= pack_tensor_type(t, kFloat32);
    layout.tensors[t] = {layouts[0], layouts[1], layouts[2], uint32_t(layouts[3]),
                         uint32_t(layouts[4])};
  }
  const Spacing result = spacing_of(layout);
  const NormLayout after = result == kAlike ? alike(layout) : layout;
  for (int t = 0; t < 3; ++t) {
    const RowLayout& rows_after = after.tensors[t];
    offsets[2 * t] = row_offset(layout.tensors[t], row);
    offsets[2 * t + 1] = result != kAlike
        ? row_offset(rows_after, row)
        : offset_of(rows_after, folded(uint32_t(row), after.tensors[0].size1,
                                       after.tensors[0].size2));
  }
  return int(result);
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
    prefetch: str
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
    number, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    bits, text = ctypes.c_uint32, ctypes.c_char_p
    loaded.plan.argtypes = [number, number, size, size, number, bits, text, pointer, text]
    loaded.instantiation_of.argtypes = [number, number, number, number, number, text]
    loaded.dispatch_rows.argtypes = [number, size, size, number, pointer]
    loaded.spacing.argtypes = [pointer, size, size, pointer]
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
    op: str = "rms_norm",
    aligned: bool = True,
    choices: int = 0,
    choice: str | None = None,
) -> Plan:
    values, name = (ctypes.c_uint32 * 7)(), ctypes.create_string_buffer(128)
    wanted = None if choice is None else choice.encode()
    error = library.plan(
        OPS_BY_NUMBER.index(op),
        DTYPES.index(dtype),
        rows,
        dim,
        aligned,
        choices,
        wanted,
        values,
        name,
    )
    if error is not None:
        raise ValueError(error.decode())
    kernel, *sizes, vector, prefetch = values
    return Plan(KERNELS[kernel], *sizes, bool(vector), PREFETCHES[prefetch], name.value.decode())


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
    variants = VARIANTS + (COLUMN_VARIANTS if OPS[op].has_channels else [])
    for dtype, (kernel, words), vector in product(range(3), variants, (0, 1)):
        line = ctypes.create_string_buffer(256)
        number = OPS_BY_NUMBER.index(op)
        library.instantiation_of(number, dtype, KERNELS.index(kernel), words, vector, line)
        lines.add(line.value.decode())
    source = tmp_path / "source.metal"
    source.write_text(f'#include "{shader}"\n')
    assert not instantiations(source, "INSTANTIATE_AT_RUN_TIME")
    source.write_text(source.read_text() + "".join(lines))
    expected = instantiations(shader)
    assert len(lines) == len(expected) == 6 * len(variants)
    assert instantiations(source, "INSTANTIATE_AT_RUN_TIME") == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_plan_has_a_kernel(library: ctypes.CDLL, dtype: str) -> None:
    """Whatever the op, its options, the rows and dim, a metallib has what is asked for."""
    seen = set()
    for op, rows, choices in product(OPS, (1, 100_000), (0, ACTIVATED, INTERLEAVED)):
        for dim in (1, 8, 100, 128, 256, 512, 520, 2816, 4096, 8192, 16384, 32000, 2**20):
            p = plan(library, dtype, rows, dim, op=op, choices=choices)
            seen.add((p.kernel, p.words_per_thread))
    assert seen == set(VARIANTS)


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
    """The order of a sum depends on one thing here, whether a row is held in registers. That is the
    same for any op, rows, alignment and choice. The bits themselves: test_bits.py."""
    for dim in (1, 33, 128, 500, 2816, 8192, 16384, 16392, 32768, 32776, 40000):
        held = -(-dim // PER_WORD[dtype]) <= 4096
        for op, rows in product(OPS, (1, 2, 31, 33, 10_000, 2**33)):
            for p in (
                plan(library, dtype, rows, dim, op=op),
                plan(library, dtype, rows, dim, op=op, choices=ACTIVATED),
                plan(library, dtype, rows, dim, op=op, aligned=False),
                plan(library, dtype, rows, dim, op=op, choice="scalar"),
            ):
                assert (p.kernel != "loop") == held


# How many values each field of a pipeline's key has: ops, kernels, words, lanes (powers of two),
# vector, prefetch, dtypes, types of 8 tensors, scalars among them, choices (below), spacing, pairs,
# threads of a column (powers of two).
KEY_FIELDS = [len(OPS), 5, 5, 6, 2, 3, 3, 1 << 16, 1 << 8, 1, 3, 2, 6]


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
        if count > 2:  # neither a flag nor the choices
            assert key([*most[:i], count, *most[i + 1 :]]) == 0
    assert len(keys) == made and 0 not in keys


# By the number of the choice.
CHOICES = {
    "activation": 4,
    "casting_mode": 2,
    "round_intermediates": 2,
    "modulation": 3,
    "norm_before_gate": 2,
    "interleaved": 2,
    "full_tables": 2,
    "across_heads": 2,
    "rope_rounding": 3,
    "gate_activation": 3,
    "form": 4,
    "silu": 2,
}


@pytest.mark.parametrize("op", OPS)
def test_pipeline_keys_have_the_choices_of_their_op(library: ctypes.CDLL, op: str) -> None:
    """Each combination makes a key of its own; others have no room there."""
    fields = [0] * len(KEY_FIELDS)
    fields[0] = OPS_BY_NUMBER.index(op)

    def key(values: dict[int, int]) -> int:
        packed = sum(value << 2 * number for number, value in values.items())
        fields[9] = packed
        return library.key_of_fields((ctypes.c_uint32 * len(fields))(*fields))

    own = {i: n for i, (name, n) in enumerate(CHOICES.items()) if name in OPS[op].option_names}
    others = {i: 1 for i in range(len(CHOICES)) if i not in own}
    combinations = [dict(zip(own, c, strict=True)) for c in product(*map(range, own.values()))]
    keys = {key(combination) for combination in combinations}
    assert len(keys) == len(combinations) and 0 not in keys
    assert {key(combination | others) for combination in combinations} == keys


def test_known_plans(library: ctypes.CDLL) -> None:
    hidden = plan(library, "bfloat16", 1, 2816)
    assert hidden.name == "rms_norm_row_2_bfloat16_vector"
    assert (hidden.threads, hidden.prefetch) == (192, "everything")
    prefill = plan(library, "bfloat16", 2048, 2816)
    assert (prefill.threads, prefill.prefetch) == (192, "activations")
    two_rows = plan(library, "bfloat16", 2048, 2816, op="add_rms_norm")
    assert two_rows.name == "add_rms_norm_row_1_bfloat16_vector"
    assert (two_rows.threads, two_rows.prefetch) == (352, "everything")
    many = plan(library, "bfloat16", 2048, 2816, op="fused_post_attn_triple_norm")
    assert (many.words_per_thread, many.prefetch) == (1, "activations")
    experts = plan(library, "bfloat16", 2048, 2816, op="fused_moe_wsum_post_ff_norm2_endlayer")
    assert (experts.words_per_thread, experts.prefetch) == (1, "nothing")
    heads = plan(library, "float16", 65536, 128)
    assert heads.name == "rms_norm_simd_1_float16_vector"
    assert (heads.lanes_per_row, heads.rows_per_threadgroup) == (16, 16)
    halves = plan(library, "float16", 65536, 128, op="rms_norm_rope")
    assert (halves.words_per_thread, halves.lanes_per_row) == (2, 8)
    pairs = plan(library, "float16", 65536, 128, op="rms_norm_rope", choices=INTERLEAVED)
    assert (pairs.words_per_thread, pairs.lanes_per_row) == (1, 16)
    assert plan(library, "float16", 1, 128).threads == 32
    assert plan(library, "float32", 5, 16384).name == "rms_norm_row_4_float32_vector"
    assert plan(library, "float32", 5, 16388).name == "rms_norm_loop_float32_vector"


@pytest.mark.parametrize(
    ("layouts", "rows", "expected"),
    [
        ([(64, 0, 0, 1, 1), (0, 0, 0, 1, 1), (128, 0, 0, 1, 1)], 100, "even"),
        # Heads of packed queries, tables of their tokens, results next to one another.
        ([(1536, 0, 64, 1, 8), (32, 0, 0, 1, 8), (64, 0, 0, 1, 1)], 80, "alike"),
        # [batch, heads, tokens] beside tables of tokens and a scale of each batch.
        ([(960, 64, 192, 3, 5), (0, 0, 32, 1, 5), (7, 0, 0, 1, 15)], 60, "alike"),
        ([(960, 64, 192, 3, 5), (0, 3, 0, 15, 1), (64, 0, 0, 1, 1)], 60, "alike"),
        ([(1, 0, 9, 1, 6), (1, 0, 9, 1, 4), (64, 0, 0, 1, 1)], 48, "mixed"),  # 4 in 6
        ([(1, 5, 9, 2, 3), (1, 0, 9, 1, 2), (64, 0, 0, 1, 1)], 48, "mixed"),  # 2, 3 and 6
        ([(1, 0, 9, 1, 6), (0, 0, 0, 1, 1), (64, 0, 0, 1, 1)], 2**32, "mixed"),
    ],
)
def test_layouts_with_nested_sizes_are_made_alike(
    library: ctypes.CDLL, layouts: list[tuple[int, ...]], rows: int, expected: str
) -> None:
    flat = (ctypes.c_int64 * 15)(*(value for layout in layouts for value in layout))
    offsets = (ctypes.c_int64 * 6)()
    for row in range(min(rows, 100)):
        spacing = library.spacing(flat, rows, row, offsets)
        assert ["even", "alike", "mixed"][spacing] == expected
        assert offsets[::2] == offsets[1::2], row


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
    ("dtype", "dim"),
    [("float32", 1), ("float16", 128), ("bfloat16", 128), ("float32", 4096), ("float32", 10**6)],
)
def test_huge_tensors_take_several_dispatches(library: ctypes.CDLL, dtype: str, dim: int) -> None:
    """Together they hold every row once; each stays within what Metal counts in 32 bits."""
    most = 4096
    for rows in (1, 37, 2**22 + 1, 2**31, 2**31 + 1, 2**32 + 5):
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
