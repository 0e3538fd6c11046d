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
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from random import Random

import built
import gpu
import metal_sim  # first: the simulated device must be there before anything asks for MPS

if __name__ == "__main__":
    built.require_this_tree()

import torch
from metal_sim import product
from ops import OPS, Call, Op
from tensors import DTYPES
from torch import Tensor

APART = "channels apart"
FORMS = ["rms", "rms_steps", "normalize", "normalize_float32"]
DIMS = [1, 7, 33, 64, 250, 2816]
# With few of the options: Metal's kernels for longer rows, by words and by elements.
LONG_DIMS = [8200, 8201, 16400, 16401, 33000, 33001]


def cases_of(op: Op) -> Iterator[tuple[str, Call]]:
    options = [("gemma", 0.0), ("llama", 1.0)]
    roundings = [False, True] if op.rounds else [False]
    activations = ["none", "silu", "gelu_tanh", "sigmoid"] if op.activates else [None]
    places = [False, True] if op.gates else [False]
    extras = [None, "there"] if op.extras else [None]
    extras += ["tanh", "sigmoid"] if op.adds_a_branch else []  # activations of the gate
    forms = (
        [(form, silu) for form in FORMS for silu in (False, True)] if op.has_channels else [None]
    )
    choices = itertools.product(roundings, activations, places, extras, forms)
    combinations = list(itertools.product(options, choices, ["none", "odd"]))
    cases = itertools.product(DTYPES, DIMS, combinations)
    long_cases = itertools.product(DTYPES, LONG_DIMS, [combinations[0], combinations[-1]])
    for dtype, dim, ((casting_mode, offset), choice, float32) in itertools.chain(cases, long_cases):
        rounds, activation, after, extra, form = choice
        chosen = {"casting_mode": casting_mode, "weight_offset": offset}
        chosen |= {"round_intermediates": True} if rounds else {}
        chosen |= {"activation": activation} if activation else {}
        chosen |= {"norm_before_gate": True} if after else {}
        chosen |= {"gate_activation": extra} if extra in ("tanh", "sigmoid") else {}
        chosen["missing"] = () if extra else op.extras
        chosen |= {"form": form[0], "silu": form[1]} if form else {}
        leading = (2, 9) if op.has_channels else (2,)
        call = op.call(leading, dim, dtype, float32=float32, scale=op.scale_kinds[-1], **chosen)
        words = [op.name, str(dtype)[6:], dim, casting_mode, activation, float32]
        if form:
            words += [form[0], "silu" * form[1]]
            yield " ".join(str(word) for word in [*words, APART] if word), call
        words += ["rounded" * rounds, "gated after" * after, f"extras {extra}" if extra else ""]
        yield " ".join(str(word) for word in words if word), call


def _uniform(t: Tensor, generator: torch.Generator) -> Tensor:
    """Between -8 and 8, exact in float32 and rounded to the tensor's dtype."""
    steps = torch.randint(-(1 << 23), 1 << 23, t.shape, generator=generator)
    return (steps.float() / (1 << 20)).to(t.dtype)


def _digest(results: Sequence[Tensor]) -> str:
    bits = b"".join(
        result.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for result in results
    )
    return hashlib.sha256(bits).hexdigest()[:16]


Share = tuple[int, int]  # (1, 3): the second third


def planned_for_many_rows(device: str) -> AbstractContextManager[None]:
    return gpu.planned_for_many_rows() if device == "cuda" else product.planned_for_many_rows()


def digests(op: Op, device: str = "cpu", share: Share = (0, 1), every: int = 1) -> dict[str, str]:
    """Of every so many calls. A GPU plans half of them for as few rows as they have, half as it
    would plan many."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for number, (name, call) in enumerate(cases_of(op)):
        call = call.mapped(lambda t: _uniform(t, generator))
        if name.endswith(APART):
            call = call.with_channels_apart()
        if number % (share[1] * every) != share[0] * every:
            continue
        many = device != "cpu" and hashlib.sha256(name.encode()).digest()[0] % 2 == 1
        with planned_for_many_rows(device) if many else nullcontext():
            found[name] = _digest(call.mapped(lambda t: t.to(device))())
    return found


def random_digests(op: Op, count: int, device: str, share: Share) -> dict[str, str]:
    """By the number of the case and what it is."""
    from cases import random_case

    found = {}
    for number in range(share[0], count, share[1]):
        case = random_case(Random(f"{op.name}/{number}"), op, long_rows=0.02)
        what = hashlib.sha256(repr(case).encode()).hexdigest()[:8]
        found[f"{number} {what}"] = _digest(case.call(device)())
    return found


def prepare(device: str) -> None:
    torch.set_num_threads(1)  # there are as many processes as cores
    if device == "mps":
        metal_sim.enable()
    elif device == "cuda":
        gpu.enable()


def digests_of(
    work: tuple[str, Share], count: int | None, device: str, every: int
) -> dict[str, str]:
    name, share = work
    if count is None:
        return digests(OPS[name], device, share, every)
    return random_digests(OPS[name], count, device, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, metavar="N", help="random cases, of all ops together")
    parser.add_argument("--device", choices=["cpu", "mps", "cuda"], default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one in so many cases")
    options = parser.parse_args()
    prepare(options.device)  # what is to be built is built once
    each = None if options.random is None else -(-options.random // len(OPS))
    shares = [(k, options.jobs) for k in range(options.jobs)]
    work = list(itertools.product(OPS, shares))
    context = multiprocessing.get_context("spawn")
    found: dict[str, dict[str, str]] = {name: {} for name in OPS}
    with ProcessPoolExecutor(options.jobs, context, prepare, (options.device,)) as pool:
        of_share = partial(digests_of, count=each, device=options.device, every=options.every)
        for (name, _), some in zip(work, pool.map(of_share, work), strict=True):
            found[name] |= some
    print(json.dumps(found, indent=0))


if __name__ == "__main__":
    main()
