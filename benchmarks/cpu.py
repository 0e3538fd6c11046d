"""rms_norm on the CPU against torch.nn.functional.rms_norm, eager and compiled.

    python benchmarks/cpu.py

Every figure is the median of interleaved turns (see timing.py). Ours writes to `out=`; compiled,
the result of rms_norm is copied to `out`, which Inductor fuses into one kernel; eager has no out,
but its fresh result costs no page faults, because freed memory is kept.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from against_pytorch import time_against_pytorch
from timing import keep_freed_memory, stolen, time_interleaved

import torch_mlxnorm

SHAPES = [(1, 2816), (16, 2816), (512, 2816), (2048, 2816), (4096, 4096), (65536, 128)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def overhead() -> None:
    dim = 2816
    x, weight = torch.randn(1, dim), torch.randn(dim)
    out = torch.empty_like(x)
    op = torch.ops.mlxnorm.rms_norm
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


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    isa, machine = torch.backends.cpu.get_cpu_capability(), platform.machine()
    print(f"torch {torch.__version__}, {machine} {isa}, 1 thread, out=, freed memory kept")
    print(
        f"{'rows':>6} {'dim':>5} {'dtype':9} {'time':>10} {'eager':>7} {'compiled':>9} {'copy':>6}"
    )
    for rows, dim in SHAPES:
        for dtype in DTYPES:
            x, weight = torch.randn(rows, dim).to(dtype), torch.randn(dim).to(dtype)
            times = time_against_pytorch(x, weight, 1e-6)
            print(
                f"{rows:6} {dim:5} {str(dtype)[6:]:9} {times.median('ours') * 1e6:8.1f}us "
                f"{times.speedup('ours', over='eager'):6.2f}x "
                f"{times.speedup('ours', over='compiled'):8.2f}x "
                f"{times.speedup('ours', over='copy'):5.2f}x",
                flush=True,
            )
    overhead()
    scaling()


if __name__ == "__main__":
    keep_freed_memory()
    main()
