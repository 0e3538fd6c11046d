"""What a repeated call allocates on MPS: nothing, whichever way it is called."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
from beside import beside, run
from metal_sim import toolchain
from ops import OPS

TESTS = Path(__file__).parent

pytestmark = [
    pytest.mark.usefixtures("simulated_mps"),
    pytest.mark.skipif(
        bool(toolchain.sanitizer_flags()), reason="sanitizers have their own malloc"
    ),
]


@beside
def allocations() -> dict[str, float]:
    """Of a call, by its name in encoding.py."""
    compiler = [toolchain.compiler(), "-O2", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "liballocations.so")
        built = run([*compiler, TESTS / "allocations.cpp", "-o", library, "-ldl"])
        assert built.returncode == 0, built.stderr
        program = [sys.executable, TESTS / "encoding.py", "allocations"]
        done = run(program, environment={"LD_PRELOAD": str(library)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["function", "record"])
@pytest.mark.parametrize("op", OPS)
def test_a_repeated_call_allocates_nothing(
    way: str, op: str, allocations: dict[str, float]
) -> None:
    assert allocations[f"{way} of {op}"] == 0


def test_nor_does_a_chain(allocations: dict[str, float]) -> None:
    assert allocations["chain"] == 0


def test_allocations_are_counted(allocations: dict[str, float]) -> None:
    """What torch.ops does with arguments, and a tensor, need some."""
    assert allocations["tensor without memory"] >= 1
    assert all(allocations[f"overload of {op}"] >= 1 for op in OPS)
