"""The Metal kernels on an NVIDIA GPU: `enable()` gives CUDA tensors all that MPS tensors have.

    shaders/OP.metal ──► translator ──► CUDA ──► NVRTC ──► machine code ──┐
                                                                          ├──► CUDA stream
    csrc/mps/*.cpp (checks, layouts, plans, pipeline keys) ──► device.cpp ┘

So plans, argument blocks, geometry and kernels are the product's, and the tests are the same.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from translator import cuda_backend, edits, msl, nvrtc

ROOT = Path(__file__).resolve().parents[2]
SHADERS = Path(os.environ.get("MLXNORM_GPU_SHADERS", ROOT / "shaders"))  # others have faults

# Bits are those of the simulator with "exact": exp, tanh and rsqrt computed in double and rounded
# once. "native" ones are CUDA's in float, which are as fast as a GPU's own.
MATH = os.environ.get("MLXNORM_GPU_MATH", "exact")


class MissingTool(RuntimeError):
    """What a run on a GPU needs is not there."""


def cache_dir() -> Path:
    return Path(os.environ.get("MLXNORM_GPU_CACHE", ROOT / ".cache" / "gpu"))


def _preprocess(shader: Path, defines: Sequence[str] = ()) -> str:
    preprocessor = shutil.which("c++")
    if preprocessor is None:
        raise MissingTool("c++ was not found: apt-get install g++")
    return msl.preprocess(shader, [preprocessor], defines=defines)


@functools.cache
def translated(op: str) -> cuda_backend.Translated:
    return cuda_backend.translate(msl.parse(_preprocess(SHADERS / f"{op}.metal")))


@functools.cache
def _compiler_key() -> bytes:
    """Of all that makes machine code of a source."""
    digest = hashlib.sha256(nvrtc.version().encode())
    for path in (*sorted(msl.TYPES.glob("*.h")), Path(nvrtc.__file__)):
        digest.update(path.read_bytes())
    for module in (cuda_backend, edits):
        digest.update(Path(module.__file__ or "").read_bytes())
    return digest.digest()


def _machine_code(source: str, buffers: int, bytes_buffer: int, size: int) -> bytes:
    """From the cache when it is there. Several processes may share it."""
    major, minor = torch.cuda.get_device_capability()
    architecture = f"sm_{major}{minor}"
    defines = ["SIM_NATIVE_MATH"] if MATH == "native" else []
    digest = hashlib.sha256(_compiler_key())
    arguments = {"buffers": buffers, "bytes_buffer": bytes_buffer, "size": size}
    digest.update("\0".join((source, architecture, *defines, str(arguments))).encode())
    path = cache_dir() / "kernels" / f"{digest.hexdigest()[:32]}.cubin"
    if path.exists():
        return path.read_bytes()
    code = nvrtc.compile_cubin(source, architecture, defines=defines, **arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(code)
    part.replace(path)
    return code


def _compile_kernel(
    op: str, function: str, constants: dict[int, int], buffers: int, size: int
) -> bytes:
    """For parameters of that size, which come after the buffers."""
    values = {index: f"{value}u" for index, value in constants.items()}
    source = cuda_backend.generate(translated(op), [function], values)
    return _machine_code(source, buffers, buffers, size)


@contextmanager
def planned_for_many_rows() -> Iterator[None]:
    """Inside the context, no number of rows is a small one."""
    enable().set_few_rows(0)
    try:
        yield
    finally:
        enable().set_few_rows(32)


Dispatch = Callable[[Sequence[torch.Tensor], int, int, int], None]


def kernel(shader: Path, name: str, defines: Sequence[str] = ()) -> Dispatch:
    """A kernel of any shader without function constants, to be called with tensors, which are
    buffers 0, 1, ..., a number, which is the next one, threadgroups and threads of each."""
    module, program = enable(), msl.parse(_preprocess(shader, defines))
    code = cuda_backend.generate(cuda_backend.translate(program), [name], {})
    (parameters,) = (kernel.parameters for kernel in program.kernels if kernel.name == name)
    number = max(parameter.index for parameter in parameters if parameter.kind == "buffer")
    return functools.partial(
        module.dispatch, module.load(_machine_code(code, module.buffers, number, 16))
    )


@functools.cache
def enable() -> ModuleType:
    """Build what is stale, and register the kernels for CUDA tensors."""
    importlib.import_module("torch_mlxnorm")  # the schemas
    if not torch.cuda.is_available():
        raise MissingTool("there is no NVIDIA GPU, or this PyTorch is not one for CUDA")
    try:
        nvrtc.library()
    except nvrtc.MissingTool as error:
        raise MissingTool(str(error)) from None
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")  # takes a while
    # Checks are compiled into both; what registers schemas is in the extension proper.
    sources = [path for path in (ROOT / "csrc").glob("*.cpp") if path.name != "library.cpp"]
    sources += [path for path in (ROOT / "csrc/mps").glob("*.cpp") if path.name != "register.cpp"]
    sources.append(Path(__file__).with_name("device.cpp"))
    folder = cache_dir() / f"torch-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    module = cpp_extension.load(
        "mlxnorm_gpu",
        sorted(map(str, sources)),
        extra_cflags=["-O2", "-std=c++20", "-fvisibility=hidden", "-Wno-psabi"],
        build_directory=str(folder),
        with_cuda=True,
    )
    module.set_compiler(_compile_kernel)
    return module
