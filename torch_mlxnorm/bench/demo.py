"""Runs each op on activations with the shapes of public models, checks its results against a
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
from torch import Tensor

from torch_mlxnorm._calls import Summands
from torch_mlxnorm._timing import keep_freed_memory

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def select_device(wanted: str) -> str:
    if wanted == "sim":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        import metal_sim

        metal_sim.enable()
        return "mps"
    if wanted == "auto":
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return wanted


def absolute(value: object) -> object:
    return Summands.of(value) if isinstance(value, Tensor) else value


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
    from against_pytorch import Case, as_tuple, time_against_pytorch
    from shapes import PHASES, USES

    import torch_mlxnorm
    from torch_mlxnorm import reference
    from torch_mlxnorm._exactness import Comparison, compare, rounds_between

    def comparisons(op: str, case: Case) -> list[Comparison]:
        actual = getattr(torch_mlxnorm, op)(*case.arguments, **case.keywords)
        exact = getattr(reference, op)
        expected = exact(*case.arguments, **case.keywords)
        magnitude = exact(
            *map(absolute, case.arguments),
            **{name: absolute(value) for name, value in case.keywords.items()},
        )
        rounded = rounds_between(case.dtype, case.keywords)
        everything = zip(*map(as_tuple, (actual, expected, magnitude)), strict=True)
        return [compare(a, e, m.as_subclass(Tensor), rounded=rounded) for a, e, m in everything]

    timed = wanted != "sim"
    where = f"{device}, {arguments.threads} thread(s), times with out=, speed-up over"
    print(f"torch {torch.__version__}, {where if timed else 'simulated Metal, not timed'}")
    print(
        f"{'model, where':41} {'phase':8} {'shape':>10} {'dtype':9}{'max error':>10}"
        + (f"{'time':>11}{'singles':>9}{'eager':>9}{'compiled':>10}{'copy':>7}" if timed else "")
    )
    passed: dict[str, list[bool]] = {}
    for use in USES:
        if use.op not in passed:
            print(use.op)
        for (phase, tokens), dtype in ((p, d) for p in PHASES.items() for d in DTYPES):
            rows = tokens * use.rows_per_token
            case = Case(
                use.op,
                rows,
                use.dim,
                dtype,
                device=device,
                eps=use.eps,
                casting_mode=use.casting_mode,
                shapes=use.shapes,
                options=use.options,
            )
            results = comparisons(use.op, case)
            ok = not any(result.wrong for result in results)
            error = max(result.largest_error for result in results)
            passed.setdefault(use.op, []).append(ok)

            line = (
                f"  {use.model + ', ' + use.name:39} {phase:8} {rows:>5}x{use.dim:<4} "
                f"{str(dtype)[6:]:9}{error:10.1e}"
            )
            if timed:
                times = time_against_pytorch(case, turns=7)
                line += f"{times.median('ours') * 1e6:9.1f}us"
                for name, width in {"singles": 9, "eager": 9, "compiled": 10, "copy": 7}.items():
                    known = name in times.turns
                    ratio = f"{times.speedup('ours', over=name):.2f}x" if known else "-"
                    line += f"{ratio:>{width}}"
            print(line if ok else line + "  WRONG", flush=True)
    verdicts = [ok for verdicts in passed.values() for ok in verdicts]
    print(
        f"{len(passed)} ops: {sum(verdicts)} of {len(verdicts)} results match the float64 reference"
    )
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
