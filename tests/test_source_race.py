"""The race of mlx-native's fused kernels, planted in ours: the second sum of a row is written into
the scratch that the first one is read from, with no barrier between."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from beside import beside, run

TESTS = Path(__file__).parent
SHADERS = TESTS.parent / "shaders"

PLANTED_IN, REPORTED_IN = "norm_kernels.h", "shaders/reduce.h"
OWN_SCRATCH = "scratch + which * kWords * kMaxSimdgroups"
SHARED_SCRATCH = "scratch"

RUN = """
import sys
from pathlib import Path
import torch
import metal_sim
from metal_sim import product
metal_sim.enable_device()
product.load(Path(sys.argv[1]), metallibs=False)
import torch_mlxnorm

x, w = torch.randn(2, 2816).to("mps"), torch.randn(2816).to("mps")
torch_mlxnorm.rms_norm(x, w)
torch.mps.synchronize()
print("one sum is right")
torch_mlxnorm.fused_post_attn_triple_norm(x, x, w, w, w, w)
torch.mps.synchronize()
print("two sums are right")
"""


@beside
def race() -> CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        shaders = Path(shutil.copytree(SHADERS, f"{folder}/shaders"))
        text = (shaders / PLANTED_IN).read_text()
        assert text.count(OWN_SCRATCH) == 1
        (shaders / PLANTED_IN).write_text(text.replace(OWN_SCRATCH, SHARED_SCRATCH))
        program = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{RUN}"
        return run([sys.executable, "-c", program, shaders])


@pytest.mark.usefixtures("simulated_mps")
def test_simulator_exposes_scratch_shared_by_two_sums(race: CompletedProcess[str]) -> None:
    assert "one sum is right" in race.stdout, race.stderr
    assert "two sums are right" not in race.stdout
    (error,) = [line for line in race.stderr.splitlines() if "simulated Metal:" in line]
    assert "data race on threadgroup memory" in error
    assert "fused_post_attn_triple_norm_row_2_float32_vector" in error and REPORTED_IN in error
