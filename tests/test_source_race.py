"""The race of mlx-native's fused kernels, planted in ours: the second sum of a row is written into
the scratch that the first one is read from, with no barrier between."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SHADERS = TESTS.parent / "shaders"

OWN_SCRATCH = "scratch + which * kMaxSimdgroups"
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


@pytest.mark.usefixtures("simulated_mps")
def test_simulator_exposes_scratch_shared_by_two_sums(tmp_path: Path) -> None:
    shaders = tmp_path / "shaders"
    shutil.copytree(SHADERS, shaders)
    kernels = shaders / "norm_kernels.h"
    text = kernels.read_text()
    assert text.count(OWN_SCRATCH) == 1
    kernels.write_text(text.replace(OWN_SCRATCH, SHARED_SCRATCH))

    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{RUN}"]
    run = subprocess.run([*command, str(shaders)], capture_output=True, text=True)
    assert "one sum is right" in run.stdout, run.stderr
    assert "two sums are right" not in run.stdout
    (error,) = [line for line in run.stderr.splitlines() if "simulated Metal:" in line]
    assert "data race on threadgroup memory" in error
    assert "fused_post_attn_triple_norm_row_2_float32_vector" in error
    assert "shaders/reduce.h" in error
