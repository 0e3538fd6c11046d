"""torch_mlxnorm's own Metal code under the simulator: the sources that setup.py builds on macOS."""

from __future__ import annotations

import functools
import runpy
from pathlib import Path

from . import build_and_load, toolchain

ROOT = toolchain.REPOSITORY


@functools.cache
def load(shaders: Path = ROOT / "shaders") -> Path:
    """Embed the shaders, build csrc/mps/ unchanged and register its kernels.

    Once in a process; other shaders than the product's are for tests of the simulator.
    """
    generated = toolchain.cache_dir() / "generated"
    if shaders != ROOT / "shaders":
        generated = shaders
    embed_shaders = runpy.run_path(str(ROOT / "csrc/mps/embed_shaders.py"))
    embed_shaders["embed"](shaders, generated / "embedded_shaders.h")
    # Checks are compiled into both; what registers schemas is in the extension proper.
    registering = {"library.cpp", "autograd.cpp"}
    sources = [path for path in (ROOT / "csrc").glob("*.cpp") if path.name not in registering]
    sources += [path for path in (ROOT / "csrc/mps").iterdir() if path.suffix in (".cpp", ".mm")]
    return build_and_load(
        "mlxnorm_mps",
        sorted(sources),
        include_dirs=[generated],
        compile_flags=["-fno-objc-arc", "-fvisibility=hidden"],
    )
