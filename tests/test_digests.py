"""The CPU kernels give the same bits on every machine that fuses multiply and add: x86-64 with AVX2
or AVX-512, and arm64, each with the exp and tanh that PyTorch's vectors take from Sleef."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from beside import beside, run, side_by_side
from digests import digests
from ops import Op, each_op

import torch_mlxnorm

# A file with the output of digests.py on another machine; `make test-arm64` brings x86-64's.
OTHER = os.environ.get("MLXNORM_DIGESTS")
CAPABILITY = torch.backends.cpu.get_cpu_capability()


Digests = dict[str, dict[str, str]]  # by op and case


@beside
def digests_of_sets() -> dict[str, Digests]:
    """With the other instruction sets of this processor."""

    def of_set(capability: str) -> Digests:
        environment = {
            "ATEN_CPU_CAPABILITY": capability,
            "PYTHONPATH": str(Path(torch_mlxnorm.__file__).parents[1]),
        }
        script = Path(__file__).with_name("digests.py")
        done = run([sys.executable, script], environment=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    others = {"AVX2": ["default"], "AVX512": ["default", "avx2"]}.get(CAPABILITY, [])
    return dict(zip(others, side_by_side(of_set, others), strict=True))


def others_digests(digests_of_sets: dict[str, Digests]) -> Digests:
    if OTHER is not None:
        return json.loads(Path(OTHER).read_text())
    if CAPABILITY != "AVX512":
        pytest.skip("no other machine to compare with: make test-arm64 does")
    return digests_of_sets["avx2"]


@each_op
def test_another_machine_gives_the_same_bits(op: Op, digests_of_sets: dict[str, Digests]) -> None:
    mine, theirs = digests(op), others_digests(digests_of_sets)[op.name]
    assert mine.keys() == theirs.keys()
    differing = [case for case in mine if mine[case] != theirs[case]]
    assert not differing, f"{len(differing)} of {len(mine)} cases differ"


@pytest.mark.skipif(CAPABILITY not in ("AVX2", "AVX512"), reason="of x86-64")
@each_op
def test_a_machine_that_fuses_nothing_shows(op: Op, digests_of_sets: dict[str, Digests]) -> None:
    mine, theirs = digests(op), digests_of_sets["default"][op.name]
    assert any(mine[case] != theirs[case] for case in mine)
