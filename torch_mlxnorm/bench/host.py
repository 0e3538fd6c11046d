"""The ops on the CPU against PyTorch: rms_norm against torch.nn.functional.rms_norm, eager and
compiled, the fused ops against the same computed without them (see compositions.py).

    python benchmarks/cpu.py [--op NAME] [--shape ROWSxDIM] [--dtype NAME]

Every figure is the median of interleaved turns (see torch_mlxnorm/_timing.py). Ours and singles,
which is rms_norm and PyTorch's operators, write to `out=`; compiled, the results are copied to the
outs, which Inductor fuses into its kernels; eager has no out, but its fresh results cost no page
faults, because freed memory is kept. The copy moves as many bytes as the op reads and writes, each
input and out once. All of it takes about five minutes, a good part of which Inductor compiles.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from against_pytorch import Case, time_against_pytorch
from compositions import COMPOSITIONS

import torch_mlxnorm
from torch_mlxnorm._timing import keep_freed_memory, stolen, time_interleaved

SHAPES = ["1x2816", "16x2816", "512x2816", "2048x2816", "4096x4096", "65536x128"]
DTYPES = ["float32", "bfloat16", "float16"]
FUSED_SHAPES = ["2048x2816", "1x2816"]
FUSED_DTYPES = ["float32", "bfloat16"]


def overhead() -> None:
    dim = 2816
    x, weight = torch.randn(1, dim), torch.randn(dim)
    out = torch.empty_like(x)
    op = torch.ops.mlxnorm.rms_norm
    record = torch_mlxnorm.RmsNormRecord(
        torch.float32, 1, dim, eps=1e-6, has_weight=True, device="cpu"
    )
    times = time_interleaved(
        {
            "torch.ops.mlxnorm.rms_norm": lambda: op(x, weight),
            "torch.ops.mlxnorm.rms_norm.default": lambda: op.default(x, weight),
            "torch.ops.mlxnorm.rms_norm(out=)": lambda: op(x, weight, out=out),
            "torch.ops.mlxnorm.rms_norm.out": lambda: op.out(x, weight, out=out),
            "torch_mlxnorm.rms_norm": lambda: torch_mlxnorm.rms_norm(x, weight),
            "torch_mlxnorm.rms_norm(out=)": lambda: torch_mlxnorm.rms_norm(x, weight, out=out),
            'torch_mlxnorm.rms_norm("llama")': lambda: torch_mlxnorm.rms_norm(
                x, weight, casting_mode="llama"
            ),
            "torch_mlxnorm.RmsNormRecord": lambda: record(x, weight, out),
            "F.layer_norm": lambda: F.layer_norm(x, (dim,), weight),
            "F.rms_norm": lambda: F.rms_norm(x, (dim,), weight, 1e-6),
        },
        turns=101,
    )
    print("\none call, 1x2816 float32, 1 thread, inference mode")
    for name in times.turns:
        print(f"  {name:36} {times.median(name) * 1e6:7.2f} us")


TURNS = 150


def scaling() -> None:
    """In single calls with pauses between: two busy threads soon use up what a shared machine
    grants. A copy beside it shows what the memory of the machine allows."""
    x, out = torch.randn(4096, 4096), torch.empty(4096, 4096)
    op = torch.ops.mlxnorm.rms_norm.out
    calls = {"rms_norm": lambda: op(x, None, out=out), "copy": lambda: out.copy_(x)}
    print("\n4096x4096 float32, 1 to 2 threads")
    for name, call in calls.items():

        def seconds(threads: int, call: Callable[[], object] = call) -> float:
            torch.set_num_threads(threads)
            time.sleep(0.02)
            call()  # a thread that slept wakes on the core of the one that woke it, then moves
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        ratios: list[float] = []
        for _ in range(TURNS):
            before = stolen()
            ratio = seconds(1) / seconds(2)
            if stolen() == before:
                ratios.append(ratio)
        torch.set_num_threads(1)
        quartiles = statistics.quantiles(ratios, n=4)
        print(
            f"  {name:9} {quartiles[1]:.2f}x (quartiles {quartiles[0]:.2f} to {quartiles[2]:.2f}, "
            f"{len(ratios)} of {TURNS} turns undisturbed)"
        )


def line(op: str, shape: str, dtype: str) -> str:
    rows, dim = map(int, shape.split("x"))
    times = time_against_pytorch(Case(op, rows, dim, getattr(torch, dtype)))
    ratios = [
        f"{times.speedup('ours', over=name):8.2f}x" if name in times.turns else f"{'-':>9}"
        for name in ("singles", "eager", "compiled", "copy")
    ]
    return f"{op:37} {shape:>10} {dtype:9}{times.median('ours') * 1e6:9.1f}us {' '.join(ratios)}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Times the ops on the CPU against PyTorch.")
    only = {"action": "append", "default": []}
    parser.add_argument("--op", choices=COMPOSITIONS, metavar="NAME", help="only this op", **only)
    parser.add_argument("--shape", metavar="ROWSxDIM", help="this shape instead", **only)
    parser.add_argument(
        "--dtype", choices=DTYPES, metavar="NAME", help="this dtype instead", **only
    )
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    isa, machine = torch.backends.cpu.get_cpu_capability(), platform.machine()
    print(f"torch {torch.__version__}, {machine} {isa}, 1 thread, out=, freed memory kept")
    print(
        f"{'op':37} {'shape':>10} {'dtype':9}{'time':>11}"
        f" {'singles':>9} {'eager':>9} {'compiled':>9} {'copy':>9}"
    )
    for op in arguments.op or COMPOSITIONS:
        shapes, dtypes = (SHAPES, DTYPES) if op == "rms_norm" else (FUSED_SHAPES, FUSED_DTYPES)
        for shape in arguments.shape or shapes:
            for dtype in arguments.dtype or dtypes:
                print(line(op, shape, dtype), flush=True)
    if not (arguments.op or arguments.shape or arguments.dtype):
        overhead()
        scaling()


if __name__ == "__main__":
    keep_freed_memory()
    main()
