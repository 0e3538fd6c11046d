"""What the kernels compute in thousands of cases, for comparing machines and commits bit by bit.

`python tests/digests.py [--device cpu|mps|cuda]` prints a digest for each of a thousand cases.
Operands are made of integers: PyTorch's own normal distribution has other bits on another machine.
`cuda` is the Metal kernels on an NVIDIA GPU (tests/gpu), with the bits of simulated MPS.

With `--random 6000` it does the same for random cases, to be compared with those of another commit
on the same machine.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from random import Random

import built
import gpu
import metal_sim  # first: the simulated device must be there before anything asks for MPS

if __name__ == "__main__":
    built.require_this_tree()

import torch
from ops import OPS, Call, Op
from tensors import DTYPES
from torch import Tensor

DIMS = [1, 7, 33, 64, 250, 2816]


def cases_of(op: Op) -> Iterator[tuple[str, Call]]:
    options = [("gemma", 0.0), ("llama", 1.0)]
    roundings = [False, True] if op.rounds else [False]
    activations = ["none", "silu", "gelu_tanh", "sigmoid"] if op.activates else [None]
    places = [False, True] if op.gates else [False]
    extras = [None, "there"] if op.extras else [None]
    extras += ["tanh", "sigmoid"] if op.adds_a_branch else []  # activations of the gate
    choices = itertools.product(roundings, activations, places, extras)
    for dtype, dim, (casting_mode, offset), choice, float32 in itertools.product(
        DTYPES, DIMS, options, list(choices), ["none", "odd"]
    ):
        rounds, activation, after, extra = choice
        chosen = {"casting_mode": casting_mode, "weight_offset": offset}
        chosen |= {"round_intermediates": True} if rounds else {}
        chosen |= {"activation": activation} if activation else {}
        chosen |= {"norm_before_gate": True} if after else {}
        chosen |= {"gate_activation": extra} if extra in ("tanh", "sigmoid") else {}
        chosen["missing"] = () if extra else op.extras
        call = op.call((2,), dim, dtype, float32=float32, scale=op.scale_kinds[-1], **chosen)
        words = [op.name, str(dtype)[6:], dim, casting_mode, activation, float32]
        words += ["rounded" * rounds, "gated after" * after, f"extras {extra}" if extra else ""]
        yield " ".join(str(word) for word in words if word), call


def _uniform(t: Tensor, generator: torch.Generator) -> Tensor:
    """Between -8 and 8, exact in float32 and rounded to the tensor's dtype."""
    steps = torch.randint(-(1 << 23), 1 << 23, t.shape, generator=generator)
    return (steps.float() / (1 << 20)).to(t.dtype)


def _digest(results: Sequence[Tensor]) -> str:
    bits = b"".join(result.cpu().view(torch.uint8).numpy().tobytes() for result in results)
    return hashlib.sha256(bits).hexdigest()[:16]


def digests(op: Op, device: str = "cpu") -> dict[str, str]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: _digest(call.mapped(lambda t: _uniform(t, generator).to(device))())
        for name, call in cases_of(op)
    }


def random_digests(op: Op, count: int, device: str) -> dict[str, str]:
    """By the number of the case and what it is."""
    from cases import random_case

    found = {}
    for number in range(count):
        case = random_case(Random(f"{op.name}/{number}"), op, long_rows=0.02)
        what = hashlib.sha256(repr(case).encode()).hexdigest()[:8]
        found[f"{number} {what}"] = _digest(case.call(device)())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, metavar="N", help="random cases, of all ops together")
    parser.add_argument("--device", choices=["cpu", "mps", "cuda"], default="cpu")
    options = parser.parse_args()
    if options.device == "mps":
        metal_sim.enable()
    elif options.device == "cuda":
        gpu.enable()
    if options.random is None:
        found = {op.name: digests(op, options.device) for op in OPS.values()}
    else:
        each = -(-options.random // len(OPS))
        found = {op.name: random_digests(op, each, options.device) for op in OPS.values()}
    print(json.dumps(found, indent=0))


if __name__ == "__main__":
    main()
