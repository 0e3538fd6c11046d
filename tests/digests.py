"""What the CPU kernels compute in a thousand cases, for comparing machines bit by bit.

`python tests/digests.py` prints a digest for each case. Operands are made of integers: PyTorch's
own normal distribution has other bits on another machine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator

import torch
from ops import OPS, Call, Op
from tensors import DTYPES
from torch import Tensor

DIMS = [1, 7, 33, 64, 250, 2816]


def cases_of(op: Op) -> Iterator[tuple[str, Call]]:
    options = [("gemma", 0.0), ("llama", 1.0)]
    roundings = [False, True] if op.rounds else [False]
    activations = ["none", "silu", "gelu_tanh", "sigmoid"] if op.activates else [None]
    for dtype, dim, (casting_mode, offset), rounds, activation, float32 in itertools.product(
        DTYPES, DIMS, options, roundings, activations, ["none", "odd"]
    ):
        chosen = {"casting_mode": casting_mode, "weight_offset": offset}
        chosen |= {"round_intermediates": True} if rounds else {}
        chosen |= {"activation": activation} if activation else {}
        call = op.call((2,), dim, dtype, float32=float32, scale=op.scale_kinds[-1], **chosen)
        words = [op.name, str(dtype)[6:], dim, casting_mode, activation, float32]
        yield " ".join(str(word) for word in [*words, "rounded" * rounds] if word), call


def _uniform(t: Tensor, generator: torch.Generator) -> Tensor:
    """Between -8 and 8, exact in float32 and rounded to the tensor's dtype."""
    steps = torch.randint(-(1 << 23), 1 << 23, t.shape, generator=generator)
    return (steps.float() / (1 << 20)).to(t.dtype)


def digests(op: Op) -> dict[str, str]:
    found = {}
    generator = torch.Generator().manual_seed(0)
    for name, call in cases_of(op):
        results = call.mapped(lambda t: _uniform(t, generator))()
        bits = b"".join(result.view(torch.uint8).numpy().tobytes() for result in results)
        found[name] = hashlib.sha256(bits).hexdigest()[:16]
    return found


if __name__ == "__main__":
    print(json.dumps({op.name: digests(op) for op in OPS.values()}, indent=0))
