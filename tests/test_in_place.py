"""Rotation in place: whoever finishes a pair overwrites what nobody else reads any more. If each
thread finished its own words alone, it would; that is planted here, and noticed."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from beside import beside, run
from metal_sim import assert_order_independent
from ops import Call, Op, assert_all_same_bits, check, each_op_that
from tensors import randn, type_id
from torch import Tensor

TESTS = Path(__file__).parent
SHADERS = TESTS.parent / "shaders"

# Dims, and how much of them is rotated: partners, or an element and the one that is read in its
# place, are words of one thread for 64 and 2816 elements of 16 bits, and of different ones here.
PARTS = {16: 12, 48: 48, 52: 26, 1000: 1000, 1001: 500, 4104: 4104, 20000: 12000, 40000: 40000}


def overwriting(call: Call) -> tuple[Tensor, ...]:
    """The results, in the place of what they are computed from."""
    copied = call.mapped(torch.clone, call.op.inputs)
    return copied(out=[copied[name] for name in call.op.inputs])


@pytest.mark.usefixtures("simulated_mps")
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize(("dim", "rotated"), PARTS.items())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=type_id)
@each_op_that(lambda op: op.rotates)
def test_thread_order_does_not_change_a_bit(
    op: Op, dtype: torch.dtype, dim: int, rotated: int, interleaved: bool
) -> None:
    """Rows share their angles, so that all begin at whole words, and only the halves may not."""
    shapes = dict.fromkeys(op.named("angles"), (rotated // 2,))
    call = op.call((3,), dim, dtype, "mps", mixed=1, shapes=shapes, interleaved=interleaved)
    results = assert_order_independent(lambda: overwriting(call), 3, op.name)
    assert_all_same_bits(results, check(call))


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize(("dim", "rotated"), PARTS.items())
@each_op_that(lambda op: op.rotates)
def test_a_slice_of_a_packed_projection(
    device: str, op: Op, dim: int, rotated: int, interleaved: bool
) -> None:
    """Every other one of [tokens, slices, heads, dim] is overwritten."""
    count = len(op.inputs)
    packed = randn(5, 2 * count + 1, 2, dim, dtype=torch.float16, device=device)
    shapes = dict.fromkeys(op.named("angles"), (5, 1, rotated // 2))
    call = op.call((5, 2), dim, torch.float16, device, shapes=shapes, interleaved=interleaved)
    whole = packed.clone()
    slices = whole[:, 1::2].unbind(1)
    call = call.having(**dict(zip(op.inputs, slices, strict=True)))
    expected = call()
    call(out=slices)
    assert_all_same_bits(slices, expected)
    assert torch.equal(whole[:, ::2], packed[:, ::2])


# ---- a planted fault ----------------------------------------------------------------------------

PLANTED_IN = "heads.h"
TOGETHER = """\
          rotate_halves(first, second, finished(first).values[0], finished(second).values[0]);
"""
# The second half is left to a neighbour.
EACH_ITS_OWN = """\
          auto y0 = finished(first).values[0];
          first.store(Formula::rotate(first, y0, -finished(second).values[0]));
          Piece one = first, other = second;
          one.word = other.word = (first.word + 1) % (first.dim / Piece::kElements);
          other.store(Formula::rotate(other, finished(other).values[0], finished(one).values[0]));
"""

RUN = """
import sys
from pathlib import Path
import torch
import metal_sim
from metal_sim import product
metal_sim.enable_device()
product.load(Path(sys.argv[1]), metallibs=False)
from ops import OPS
from test_in_place import overwriting

for name, dim in (("rms_norm_rope", 48), ("rms_norm_rope", 1008), ("qkv_norm_rope", 48)):
    call = OPS[name].call((3,), dim, torch.bfloat16, "mps")
    metal_sim.assert_order_independent(call, 3)
    print(name, dim, "is right elsewhere")
    try:
        metal_sim.assert_order_independent(lambda: overwriting(call), 3)
        print(name, dim, "is right in place")
    except metal_sim.OrderDependence as error:
        print(error)
"""


@beside
def early_store() -> CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        shaders = Path(shutil.copytree(SHADERS, f"{folder}/shaders"))
        text = (shaders / PLANTED_IN).read_text()
        assert text.count(TOGETHER) == 1
        (shaders / PLANTED_IN).write_text(text.replace(TOGETHER, EACH_ITS_OWN))
        program = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{RUN}"
        return run([sys.executable, "-c", program, shaders])


@pytest.mark.usefixtures("simulated_mps")
def test_a_store_before_another_thread_has_read_is_noticed(
    early_store: CompletedProcess[str],
) -> None:
    lines = early_store.stdout.splitlines()
    assert [line for line in lines if "is right" in line] == [
        "rms_norm_rope 48 is right elsewhere",
        "rms_norm_rope 1008 is right elsewhere",
        "qkv_norm_rope 48 is right elsewhere",
    ], early_store.stderr
    for kernel in ("rms_norm_rope_simd_2", "rms_norm_rope_row_4", "qkv_norm_rope_simd_2"):
        assert any(f"[{kernel}_bfloat16_vector]" in line for line in lines)
