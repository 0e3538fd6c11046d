"""Builds torch_mlxnorm/_C: CPU everywhere, MPS as well on macOS."""

from __future__ import annotations

import os
import platform
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
MACOS = sys.platform == "darwin"
MACOS_DEPLOYMENT_TARGET = "14.0"  # bfloat needs Metal 3.1

CXX_FLAGS = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall"]
# Contracted differently in two ops, a * b + c would give them different bits.
ISA_CXX_FLAGS = [*CXX_FLAGS, "-ffp-contract=off"]

# csrc/cpu/isa is compiled once for each, as PyTorch compiles its own CPU kernels. On arm64 the
# default already has vectors (NEON).
ISA_FLAGS = {
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
}
if platform.machine() not in ("x86_64", "AMD64"):
    ISA_FLAGS = {"DEFAULT": []}


def files(*patterns: str) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in Path().glob(pattern))


def openmp() -> tuple[list[str], list[str]]:
    """Flags for compiler and linker. Without OpenMP at::parallel_for silently runs serially."""
    if not MACOS:
        return ["-fopenmp"], []
    # Apple's clang has no omp.h or libomp of its own; PyTorch's wheel brings the library.
    for prefix in filter(None, [os.environ.get("OMP_PREFIX"), "/opt/homebrew/opt/libomp"]):
        if Path(prefix, "include/omp.h").exists():
            library = Path(cpp_extension.TORCH_LIB_PATH, "libomp.dylib")
            return ["-Xclang", "-fopenmp", f"-I{prefix}/include"], [str(library)]
    print("warning: no omp.h found (brew install libomp): CPU kernels will use one thread")
    return [], []


class BuildExtension(cpp_extension.BuildExtension):
    """Adds what a list of sources cannot say: generated headers and one object per ISA."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # pip builds in a fresh directory each time; this one lets ninja rebuild what changed.
        self.build_temp = str(ROOT / "build" / f"torch-{torch.__version__}")

    def build_extension(self, extension: cpp_extension.CppExtension) -> None:
        generated = Path(self.build_temp) / "generated"
        if MACOS:
            embed_shaders = runpy.run_path(str(ROOT / "csrc/mps/embed_shaders.py"))
            embed_shaders["embed"](ROOT / "shaders", generated / "embedded_shaders.h")
            extension.include_dirs.append(str(generated))
        extension.extra_objects = self.isa_objects()
        super().build_extension(extension)

    def isa_objects(self) -> list[str]:
        directory = Path(self.build_temp) / "isa"
        directory.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "c++").split()
        includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
        dependencies = files(
            "csrc/cpu/isa/*.h", "csrc/cpu/*.h", "csrc/types.h", "shaders/**/*.h", "setup.py"
        )
        newest = max(os.path.getmtime(path) for path in dependencies)
        objects, commands = [], []
        for source in files("csrc/cpu/isa/*.cpp"):
            for isa, flags in ISA_FLAGS.items():
                target = directory / f"{Path(source).stem}_{isa}.o"
                objects.append(str(target))
                if target.exists() and target.stat().st_mtime > newest:
                    continue
                defines = [f"-DCPU_CAPABILITY={isa}", f"-DCPU_CAPABILITY_{isa}"]
                quiet = ["-Wno-psabi", "-Wno-uninitialized"]  # of the intrinsics headers
                commands.append(
                    [*compiler, *ISA_CXX_FLAGS, *quiet, "-fPIC", *flags, *defines, *includes]
                    + ["-c", source, "-o", str(target)]
                )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.spawn, commands))
        return objects


sources = files(*(f"csrc/{room}*.cpp" for room in ("", "dispatch/", "cpu/", "meta/", "python/")))
openmp_compile, openmp_link = openmp()
cxx_flags = [*CXX_FLAGS, *openmp_compile]
link_flags = [*openmp_link]
if MACOS:
    os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", MACOS_DEPLOYMENT_TARGET)
    sources += files("csrc/mps/*.cpp", "csrc/mps/*.mm")
    cxx_flags += ["-fno-objc-arc", f"-mmacosx-version-min={MACOS_DEPLOYMENT_TARGET}"]
    link_flags += ["-framework", "Metal", "-framework", "Foundation"]

setup(
    ext_modules=[
        cpp_extension.CppExtension(
            "torch_mlxnorm._C",
            sources,
            depends=files("csrc/**/*.h", "shaders/**/*"),
            extra_compile_args={"cxx": cxx_flags},
            extra_link_args=link_flags,
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
)
