"""torch_mlxnorm's own Metal code under the simulator: the sources that setup.py builds on macOS."""

from __future__ import annotations

import ctypes
import functools
import runpy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from . import build_and_load, toolchain

ROOT = toolchain.REPOSITORY
METALLIB_MAGIC = b"simulated metallib\n"  # see fake_metal/metal_library.h


@functools.cache
def load(
    shaders: Path = ROOT / "shaders", *, metallibs: bool = True, only_build: bool = False
) -> Path:
    """Embed the shaders, build csrc/mps/ unchanged and register its kernels.

    Once in a process; other shaders than the product's are for tests of the simulator. Simulated
    metallibs, one for each op, let a test session compile 9 libraries and not some hundred.
    """
    generated = toolchain.cache_dir() / "generated"
    if shaders != ROOT / "shaders":
        generated = generated.with_name("generated_of_other_shaders")
    embed_shaders = runpy.run_path(str(ROOT / "csrc/mps/embed_shaders.py"))

    def metallib(shader: Path) -> bytes | None:
        if not metallibs:
            return None
        return METALLIB_MAGIC + embed_shaders["flatten"](shader, lines=True).encode()

    output = generated / "embedded_shaders.h"
    embed_shaders["embed"](shaders, output, lines=True, metallib=metallib)
    # Checks are compiled into both; what registers schemas is in the extension proper.
    sources = [path for path in (ROOT / "csrc").glob("*.cpp") if path.name != "library.cpp"]
    sources += [path for path in (ROOT / "csrc/mps").iterdir() if path.suffix in (".cpp", ".mm")]
    sources.append(toolchain.PACKAGE / "product_hooks.cpp")
    return build_and_load(
        "mlxnorm_mps",
        sorted(sources),
        include_dirs=[generated],
        compile_flags=["-fno-objc-arc", "-fvisibility=hidden"],
        load=not only_build,
    )


@contextmanager
def _set(name: str, value: int, usual: int) -> Iterator[None]:
    set_value = getattr(ctypes.CDLL(str(load())), f"mlxnorm_set_{name}")
    set_value.argtypes = [ctypes.c_int64]
    set_value(value)
    try:
        yield
    finally:
        set_value(usual)


def max_grid_threads(most: int) -> AbstractContextManager[None]:
    """Inside the context, more threads than this take several dispatches."""
    return _set("max_grid_threads", most, 1 << 31)


def planned_for_many_rows() -> AbstractContextManager[None]:
    """Inside the context, no number of rows is a small one."""
    return _set("few_rows", 0, 32)
