"""The devices that every test of an op runs on: `cpu`, and `mps`, which is a Mac's GPU on a Mac
and simulated elsewhere (tests/metal_sim)."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator

# Before PyTorch is loaded: its threads then wait asleep. On a busy machine, waiting in a loop for
# one that is not running makes the suite three times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import beside
import built
import gpu
import metal_sim  # first: the simulated device must be there before anything asks for MPS
import pytest

built.require_this_tree()

ON_MAC = sys.platform == "darwin"

_missing_tool: str | None = None
if not ON_MAC:
    try:
        metal_sim.enable()
    except metal_sim.MissingTool as error:
        if os.environ.get("MLXNORM_REQUIRE_TOOLS") == "1":
            raise
        _missing_tool = str(error)

import one_op  # noqa: E402
import torch  # noqa: E402

import torch_mlxnorm  # noqa: E402, F401


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--op", metavar="NAME", help="only the tests of this op")
    parser.addoption(
        "--gpu",
        action="store_true",
        help="only tests of an op on MPS, with an NVIDIA GPU in its place (tests/gpu)",
    )


def runs_on_mps(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    values = (callspec.params.get(name) for name in ("device", "where")) if callspec else ()
    of_mps = "simulated_mps" in getattr(item, "fixturenames", ()) or item.get_closest_marker("mps")
    return "mps" in values and not of_mps


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (name := config.getoption("--op")) is not None:
        kept = set(one_op.tests_of(name, items))
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]
    if config.getoption("--gpu"):
        config.hook.pytest_deselected(items=[item for item in items if not runs_on_mps(item)])
        items[:] = filter(runs_on_mps, items)
    items.sort(key=beside.waits)


def pytest_collection_finish(session: pytest.Session) -> None:
    within_a_test = "PYTEST_CURRENT_TEST" in os.environ
    if not session.config.option.collectonly and not within_a_test:
        items: list[pytest.Function] = session.items
        beside.begin_for(i for i in items if not (ON_MAC and "simulated_mps" in i.fixturenames))
        session.config.add_cleanup(beside.end)
        session.config.add_cleanup(gc.unfreeze)
        gc.freeze()  # the garbage collector need not look at thousands of tests each time


@pytest.fixture(params=["cpu", "mps"])
def device(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("mps") if request.param == "mps" else request.param


@pytest.fixture(params=["cpu", "mps", "meta"])
def where(request: pytest.FixtureRequest) -> str:
    """Every device, and tensors without data, which are checked the same way."""
    return request.getfixturevalue("mps") if request.param == "mps" else request.param


def mps_refusal() -> str | None:
    """What the device says when it does not give memory: the GPU of a virtual Mac may be there and
    refuse."""
    try:
        torch.zeros(1, device="mps").add_(1)
        torch.mps.synchronize()
    except RuntimeError as error:
        return f"this Mac's MPS device does not work: {error}"
    return None


@pytest.fixture(scope="session")
def mps(pytestconfig: pytest.Config) -> str:
    """The MPS device, of a Mac or simulated; or an NVIDIA GPU in its place."""
    if pytestconfig.getoption("--gpu"):
        gpu.enable()
        return "cuda"
    if _missing_tool:
        pytest.skip(_missing_tool)
    if not torch.backends.mps.is_available():
        pytest.skip("this Mac has no MPS device")
    if refusal := mps_refusal():
        pytest.skip(refusal)
    return "mps"


@pytest.fixture(scope="session")
def simulated_mps(mps: str) -> str:
    """The simulated MPS device, for what only a simulator can show."""
    if ON_MAC:
        pytest.skip("the Metal simulator runs on Linux")
    return mps


# PyTorch 2.8; later ones.
_NO_BACKWARD = ("CUDA driver", "opt_ready_stream", "Backend doesn't support events")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """PyTorch built for CUDA asks CUDA's driver about streams before a backward on any accelerator;
    PyPI's wheels for Linux are such."""
    try:
        return (yield)
    except Exception as error:
        of_cuda = not ON_MAC and torch.version.cuda is not None
        if of_cuda and any(text in str(error) for text in _NO_BACKWARD):
            pytest.skip("a backward on simulated MPS needs CUDA's driver in PyTorch built for CUDA")
        raise
