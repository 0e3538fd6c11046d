"""`pytest --op NAME`, on tests with every kind of parameter."""

from __future__ import annotations

from pathlib import Path

import pytest
from ops import OPS

TESTS = Path(__file__).parent

SMALL = """
import pytest
import torch_mlxnorm
from ops import OPS, each_op

@each_op
@pytest.mark.parametrize("n", [1, 2])
def test_op(op, n): pass

@each_op
def test_op_beside_another(op): OPS["rms_norm"]

@pytest.mark.parametrize("name", OPS)
def test_name(name): pass

@pytest.mark.parametrize("call", [OPS[name].call((1,), 8) for name in ("rms_norm", "add_rms_norm")])
def test_call(call): pass

@pytest.mark.parametrize("n", [1, 2])
def test_of_one(n): torch_mlxnorm.rms_norm()

def test_of_one_inside(): [lambda: OPS["rms_norm"] for _ in ()]

def test_of_two(): torch_mlxnorm.rms_norm(OPS["add_rms_norm"])

@pytest.mark.parametrize("dtype", ["float32"])
def test_of_none(dtype): "rms_norm of all kinds"
"""

KEPT = {
    "rms_norm": {
        *("test_op[1-rms_norm]", "test_op[2-rms_norm]", "test_op_beside_another[rms_norm]"),
        *("test_name[rms_norm]", "test_call[call0]", "test_of_one[1]", "test_of_one[2]"),
        "test_of_one_inside",
    },
    "add_rms_norm": {
        *("test_op[1-add_rms_norm]", "test_op[2-add_rms_norm]"),
        *("test_op_beside_another[add_rms_norm]", "test_name[add_rms_norm]", "test_call[call1]"),
    },
}


class Collected:
    """As a plugin of pytest, notes what is left to run."""

    names: set[str]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = {item.name for item in session.items}


def test_keeps_the_tests_of_an_op(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path, collected = tmp_path / "test_small.py", Collected()
    path.write_text(SMALL)
    hooks = request.config.pluginmanager.get_plugin(str(TESTS / "conftest.py"))
    options = ["--rootdir", str(tmp_path), "--collect-only", "-q", "-p", "no:cacheprovider"]
    for op, expected in KEPT.items():
        assert pytest.main([*options, "--op", op, str(path)], plugins=[hooks, collected]) == 0
        assert collected.names == expected


def test_an_unknown_op(capsys: pytest.CaptureFixture[str]) -> None:
    name = str(TESTS / "test_readme.py")
    assert (
        pytest.main(["-p", "no:cacheprovider", "--op", "rms", name]) == pytest.ExitCode.USAGE_ERROR
    )
    assert f"ERROR: --op rms: the ops are {', '.join(OPS)}" in capsys.readouterr().err
