"""The extension's sources and how setup.py compiles them for a Mac. Follows setup.py by hand."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path

from . import Source

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"

# csrc/cpu/isa is compiled once for each instruction set; on arm64 there is one.
ISA_DEFINES = (
    "CPU_CAPABILITY=DEFAULT",
    "CPU_CAPABILITY_DEFAULT",
    "AT_BUILD_ARM_VEC256_WITH_SLEEF",
)


def product_sources(generated: Path) -> list[Source]:
    """Everything that goes into torch_mlxnorm/_C; writes generated headers into `generated`."""
    spec = importlib.util.spec_from_file_location("embed_shaders", CSRC / "mps/embed_shaders.py")
    assert spec is not None and spec.loader is not None
    embed_shaders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(embed_shaders)
    embed_shaders.embed(ROOT / "shaders", generated / "embedded_shaders.h", lines=False)
    isa = CSRC / "cpu" / "isa"
    python = python_headers(generated / "python")
    return [
        Source(
            path,
            include_dirs=(generated, python),
            defines=ISA_DEFINES if path.is_relative_to(isa) else (),
        )
        for path in product_paths()
    ]


def python_headers(folder: Path) -> Path:
    """Those of this machine: what differs on a Mac does not show in a class of two functions.
    Debian's pyconfig.h chooses among those of Linux, where a Mac finds none: a copy has that of
    this machine."""
    headers = Path(sysconfig.get_paths()["include"])
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    chosen = headers.parent / multiarch / headers.name / "pyconfig.h"
    if not multiarch or not chosen.exists():
        return headers
    if not folder.exists():
        shutil.copytree(headers, folder)
        shutil.copyfile(chosen, folder / "pyconfig.h")
    return folder


def product_paths() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in (".cpp", ".mm"))
