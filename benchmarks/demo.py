"""Runs rms_norm on activations with the shapes of public models, checks each result against a
float64 reference and times it.

    python benchmarks/demo.py [--device auto|cpu|mps|sim] [--threads N]

`auto` is MPS on a Mac that has it, else the CPU. `sim` executes the Metal kernels on the CPU
(tests/metal_sim): the same checks, no times.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from timing import keep_freed_memory
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# What the last rounding may cost, and for float32 its arithmetic as well; "llama" rounds twice.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def select_device(wanted: str) -> str:
    if wanted == "sim":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        import metal_sim

        metal_sim.enable()
        return "mps"
    if wanted == "auto":
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return wanted


def activations(rows: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Like a residual stream: most channels near 1, a few larger by orders of magnitude."""
    generator = torch.Generator().manual_seed(rows * dim)
    channels = torch.exp(torch.randn(dim, generator=generator))
    return (torch.randn(rows, dim, generator=generator) * channels).to(dtype)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "mps", "sim"])
    # One thread by default: on a busy machine, threads that wait for each other time the scheduler.
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    arguments = parser.parse_args()
    wanted = arguments.device
    torch.set_num_threads(arguments.threads)
    device = select_device(wanted)

    # After the device is there: PyTorch remembers its answers about devices.
    from against_pytorch import time_against_pytorch
    from shapes import NORMS, PHASES

    from torch_mlxnorm import reference, rms_norm

    timed = wanted != "sim"
    where = f"{device}, {arguments.threads} thread(s), times with out=, speed-up over"
    print(f"torch {torch.__version__}, {where if timed else 'simulated Metal, not timed'}")
    print(
        f"{'op':8} {'model, norm':37} {'phase':8} {'shape':>10} {'dtype':9}{'max error':>10}"
        + (f"{'time':>11}{'F.rms_norm':>12}{'compiled':>10}{'of copy':>9}" if timed else "")
    )
    failed = 0
    for norm in NORMS:
        for (phase, tokens), dtype in ((p, d) for p in PHASES.items() for d in DTYPES):
            rows = tokens * norm.rows_per_token
            x = activations(rows, norm.dim, dtype).to(device)
            weight = activations(1, norm.dim, dtype)[0].to(device) if norm.has_weight else None
            options = {"casting_mode": norm.casting_mode}

            expected = reference.rms_norm(x, weight, norm.eps, **options)
            result = rms_norm(x, weight, norm.eps, **options).cpu().double()
            # In units of the value, as a dtype rounds.
            error = ((result - expected).abs() / expected.abs().clamp(min=2.0**-14)).max().item()
            ok = error <= TOLERANCE[dtype] * (2 if norm.casting_mode == "llama" else 1)
            failed += not ok

            line = (
                f"rms_norm {norm.model + ', ' + norm.name:37} {phase:8} {rows:>5}x{norm.dim:<4} "
                f"{str(dtype)[6:]:9}{error:10.1e}"
            )
            if timed:
                times = time_against_pytorch(x, weight, norm.eps, norm.casting_mode, turns=7)
                line += (
                    f"{times.median('ours') * 1e6:9.1f}us"
                    f"{times.speedup('ours', over='eager'):11.2f}x"
                    f"{times.speedup('ours', over='compiled'):9.2f}x"
                    f"{times.speedup('ours', over='copy'):9.2f}"
                )
            print(line if ok else line + "  WRONG", flush=True)
    count = len(NORMS) * len(PHASES) * len(DTYPES)
    print(f"rms_norm: {count - failed} of {count} results match the float64 reference")
    return 1 if failed else 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
