"""The CPU kernels give the same bits on every machine that fuses multiply and add: x86-64 with AVX2
or AVX-512, and arm64, each with the exp that PyTorch's vectors take from Sleef."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digests import digests
from ops import Op, each_op

import torch_mlxnorm

# A file with the output of digests.py on another machine; `make test-arm64` brings x86-64's.
OTHER = os.environ.get("MLXNORM_DIGESTS")
CAPABILITY = torch.backends.cpu.get_cpu_capability()


@functools.cache
def digests_with(capability: str) -> dict[str, dict[str, str]]:
    """Of every op, with another instruction set of this processor."""
    script = Path(__file__).with_name("digests.py")
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": capability,
        "PYTHONPATH": str(Path(torch_mlxnorm.__file__).parents[1]),
    }
    run = subprocess.run(
        [sys.executable, script], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(run.stdout)


def others_digests() -> dict[str, dict[str, str]]:
    if OTHER is not None:
        return json.loads(Path(OTHER).read_text())
    if CAPABILITY != "AVX512":
        pytest.skip("no other machine to compare with: make test-arm64 does")
    return digests_with("avx2")


@each_op
def test_another_machine_gives_the_same_bits(op: Op) -> None:
    mine, theirs = digests(op), others_digests()[op.name]
    assert mine.keys() == theirs.keys()
    differing = [case for case in mine if mine[case] != theirs[case]]
    assert not differing, f"{len(differing)} of {len(mine)} cases differ"


@pytest.mark.skipif(CAPABILITY not in ("AVX2", "AVX512"), reason="of x86-64")
@each_op
def test_a_machine_that_fuses_nothing_shows(op: Op) -> None:
    mine, theirs = digests(op), digests_with("default")[op.name]
    assert any(mine[case] != theirs[case] for case in mine)
