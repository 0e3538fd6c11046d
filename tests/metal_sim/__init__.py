"""Simulated Metal: run unchanged `.mm` and `.metal` files on Linux, inside PyTorch's CPU build.

    import torch
    import metal_sim

    metal_sim.enable()
    torch_mlxnorm.rms_norm(x.to("mps"), None).cpu()

Errors that a kernel or its dispatch makes are raised as `RuntimeError` whose text starts with
"simulated Metal:", at the next synchronization (`.cpu()`, `torch.mps.synchronize()`, ...).
See README.md for what is checked and what is not.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import toolchain
from .builder import BuildError, Target, build
from .toolchain import MissingTool

if TYPE_CHECKING:
    import torch

__all__ = [
    "BuildError",
    "MissingTool",
    "OrderDependence",
    "assert_order_independent",
    "build_and_load",
    "check_tools",
    "enable",
    "enable_device",
    "encode_nothing",
    "failing_compiler",
    "is_enabled",
    "live_objects",
    "only_counting",
    "refuse_metallibs",
    "reset_stats",
    "stats",
    "thread_order",
]

ThreadOrder = Literal["forward", "reversed", "shuffled"]
_ORDERS = {"forward": 0, "reversed": 1, "shuffled": 2}

_library: ctypes.CDLL | None = None
_current_order: tuple[ThreadOrder, int] = ("forward", 0)


class OrderDependence(AssertionError):
    """A result changed with the order in which GPU threads ran."""


def check_tools() -> None:
    """Raise `MissingTool`, naming the Debian package, unless everything needed is installed."""
    toolchain.check()


def is_enabled() -> bool:
    return _library is not None


def enable() -> None:
    """Build what is stale, register the "mps" device and torch_mlxnorm's kernels. Idempotent.

    Call it right after `import torch`: PyTorch remembers answers about devices.
    """
    from . import product

    enable_device()
    product.load()


def enable_device() -> None:
    """The same without torch_mlxnorm: for Metal code of other extensions (`build_and_load`)."""
    global _library
    if _library is not None:
        return
    check_tools()
    import torch

    if torch.backends.mps.is_built():
        raise RuntimeError(
            "this PyTorch has a real MPS backend; the simulator is for builds without"
        )
    path = build(_simulator_target())
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    tables = (
        library.metal_sim_stats,
        library.metal_sim_live_objects,
        library.metal_sim_kernels_run,
    )
    for function in tables:
        function.restype = ctypes.c_size_t
        function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.metal_sim_only_count.argtypes = [ctypes.c_bool]
    library.metal_sim_encode_nothing.argtypes = [ctypes.c_int64]
    library.metal_sim_fail_compilations.argtypes = [ctypes.c_char_p]
    library.metal_sim_set_thread_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
    package_parent = str(toolchain.PACKAGE.parent)
    library.metal_sim_configure(os.fsencode(sys.executable), os.fsencode(package_parent))
    torch._C._has_mps = True  # torch.manual_seed and others ask this constant of the build
    _library = library


def build_and_load(
    name: str,
    sources: Sequence[str | Path],
    include_dirs: Sequence[str | Path] = (),
    defines: Sequence[str] = (),
    compile_flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
    load: bool = True,
) -> Path:
    """Compile `.mm` and `.cpp` files as a PyTorch extension for the simulator and load it.

    Everything is compiled as Objective-C++ with torch's headers, the hand-written Apple headers and
    `include_dirs` on the include path; defines are "NAME" or "NAME=value". Only stale files are
    compiled again. Returns the path of the shared object; `load=False` only builds it.
    """
    import torch

    simulator = build(_simulator_target())
    flags = [*toolchain.objective_cxx_flags(), *_torch_include_flags()]
    flags += ["-O1", "-g1", "-Wall", *toolchain.sanitizer_flags()]
    flags += [f"-I{Path(path).resolve()}" for path in include_dirs]
    flags += [f"-D{define}" for define in defines]
    target = Target(
        name=name,
        sources=[Path(source).resolve() for source in sources],
        compile_flags=[*flags, *compile_flags],
        link_flags=[*toolchain.link_flags(), *_torch_link_flags(), *link_flags],
        libraries=[simulator],
    )
    path = build(target)
    if load:
        enable_device()
        torch.ops.load_library(str(path))
    return path


# ---- thread order -------------------------------------------------------------------------------


@contextmanager
def thread_order(order: ThreadOrder, seed: int = 0) -> Iterator[None]:
    """Run GPU threads (and threadgroups) in this order inside the context.

    Whatever was encoded before runs in the order that was set before.
    """
    previous = _current_order
    _set_thread_order(order, seed)
    try:
        yield
    finally:
        _set_thread_order(*previous)


def assert_order_independent(
    function: Callable[[], Any], shuffles: int = 3, name: str | None = None
) -> Any:
    """Call `function` under several thread orders; raise `OrderDependence` if a bit differs.

    The function must make its own outputs: tensors, or nested tuples, lists and dicts of them.
    Returns what the forward order gave.
    """
    orders: list[tuple[ThreadOrder, int]] = [("forward", 0), ("reversed", 0)]
    orders += [("shuffled", seed) for seed in range(1, shuffles + 1)]
    first: Any = None
    expected: list[bytes] = []
    for order, seed in orders:
        with thread_order(order, seed):
            result = function()
            observed = [_tensor_bytes(tensor) for tensor in _tensors(result)]
            kernels = ", ".join(_kernels_run())
        if order == "forward":
            first, expected = result, observed
        elif observed != expected:
            different = [
                i for i, (a, b) in enumerate(zip(expected, observed, strict=True)) if a != b
            ]
            label = f"{order} (seed {seed})" if order == "shuffled" else order
            raise OrderDependence(
                f"result depends on the thread order (missing barrier?): {name or 'kernels'} "
                f"[{kernels}]: output {different[0]} differs between forward and {label}"
            )
    return first


def _set_thread_order(order: ThreadOrder, seed: int) -> None:
    global _current_order
    if order not in _ORDERS:
        raise ValueError(f"thread order must be one of {', '.join(_ORDERS)}, got {order!r}")
    import torch

    torch.mps.synchronize()
    _loaded().metal_sim_set_thread_order(_ORDERS[order], seed)
    _current_order = (order, seed)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for element in value.values():
            yield from _tensors(element)
    elif isinstance(value, (tuple, list)):
        for element in value:
            yield from _tensors(element)


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# ---- the compiler -------------------------------------------------------------------------------


def refuse_metallibs(refuse: bool = True) -> None:
    """Whether `newLibraryWithData:` fails from now on, as where a metallib is of another system:
    then source is compiled."""
    _loaded().metal_sim_refuse_metallibs(refuse)


@contextmanager
def failing_compiler(text: str) -> Iterator[None]:
    """`newLibraryWithSource:` fails with this text inside the context."""
    _loaded().metal_sim_fail_compilations(text.encode())
    try:
        yield
    finally:
        _loaded().metal_sim_fail_compilations(b"")


# ---- counters -----------------------------------------------------------------------------------


def stats() -> dict[str, int]:
    """Counters since the start or the last reset; fake_metal/stats.h explains each."""
    return _read_table(_loaded().metal_sim_stats)


def reset_stats() -> None:
    _loaded().metal_sim_reset_stats()


def live_objects() -> dict[str, int]:
    """Objective-C objects that exist right now, by class (SimBuffer, SimPipeline, ...)."""
    return _read_table(_loaded().metal_sim_live_objects)


def _kernels_run() -> list[str]:
    """Names of the kernels that ran since the thread order was set."""
    return list(_read_table(_loaded().metal_sim_kernels_run))


def _read_table(
    function: Callable[[ctypes.Array[ctypes.c_char] | None, int], int],
) -> dict[str, int]:
    buffer = ctypes.create_string_buffer(function(None, 0) + 4096)
    function(buffer, len(buffer))
    rows = (line.rsplit(" ", 1) for line in buffer.value.decode().splitlines())
    return {key: int(value) for key, value in rows}


def _loaded() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError("call metal_sim.enable() first")
    return _library


@contextmanager
def only_counting() -> Iterator[None]:
    """Inside the context, encoders count messages and do nothing else, so that what a
    call takes is its own: no kernel runs, and results stay what they were."""
    _loaded().metal_sim_only_count(True)
    try:
        yield
    finally:
        _loaded().metal_sim_only_count(False)


def encode_nothing(times: int) -> None:
    """So many blocks on the stream's queue, as a call has one: the fake Metal's own part of it."""
    _loaded().metal_sim_encode_nothing(times)


# ---- building the simulator ---------------------------------------------------------------------


def _torch_include_flags() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return [flag for path in include_paths() for flag in ("-isystem", path)]


def _torch_link_flags() -> list[str]:
    import torch

    folder = Path(torch.__file__).parent / "lib"
    return [f"-L{folder}", "-ltorch_cpu", "-lc10"]


def _simulator_target() -> Target:
    sources: list[Path] = []
    for folder in ("executor", "fake_metal", "mps_device"):
        sources += sorted((toolchain.PACKAGE / folder).glob("*.cpp"))
        sources += sorted((toolchain.PACKAGE / folder).glob("*.mm"))
    # The slow ones first, so that they do not run alone at the end.
    sources.sort(key=lambda path: path.parent.name != "mps_device")
    flags = [*toolchain.objective_cxx_flags(), *_torch_include_flags(), "-O2", "-g1", "-Wall"]
    return Target(
        name="metal_sim",
        sources=sources,
        compile_flags=[*flags, *toolchain.sanitizer_flags()],
        link_flags=[*toolchain.link_flags(), *_torch_link_flags(), "-ldl"],
        # It switches stacks under ThreadSanitizer's feet, and runs on one thread at a time.
        folder_flags={"executor": ["-fno-sanitize=thread"]},
    )
