"""CPU kernels against models' own code (model_code.py): eager, and compiled by Inductor.

    python -m torch_mlxnorm.bench.models [--dtype NAME] [--fresh] [--json FILE]

One thread; each turn times all three one after another, the op writing to its outs and the compiled
code to tensors of its own. Speed-ups are medians over the turns. Freed memory is kept, so that no
fresh result costs a page fault; --fresh lets glibc give it back, as it usually does.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from torch_mlxnorm._timing import keep_freed_memory, time_interleaved

from . import model_code, report
from .case import Call
from .clocks import number_of_turns
from .peers import OURS

OPS = torch.ops.mlxnorm
LLAMA = {"casting_mode": "llama"}


def heads(batch: int, tokens: int, heads: int, dim: int) -> tuple[Tensor, Tensor]:
    """Of queries or keys, and a weight."""
    return torch.randn(batch, tokens, heads, dim), 1 + 0.1 * torch.randn(dim)


def tables(tokens: int, dim: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """[tokens, 1, dim], an element for each of a row."""
    angles = torch.arange(tokens)[:, None, None] * 1e4 ** -torch.linspace(0, 1, dim // 2)
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


Calls = tuple[Call, Call]  # ours, and the model's


def qwen3(dtype: torch.dtype) -> Calls:
    (q, q_weight), (k, k_weight) = heads(1, 512, 32, 128), heads(1, 512, 8, 128)
    cos, sin = tables(512, 128, interleaved=False)
    q, k, q_weight, k_weight, cos, sin = (t.to(dtype) for t in (q, k, q_weight, k_weight, cos, sin))

    def own() -> object:
        queries = model_code.transformers(q, q_weight, cos, sin)
        return queries, model_code.transformers(k, k_weight, cos, sin)

    outs = {"q_out": torch.empty_like(q), "k_out": torch.empty_like(k)}
    options = LLAMA | {"rope_rounding": "products"}
    ours = partial(OPS.qk_norm_rope.out, q, k, q_weight, k_weight, cos, sin, **options, **outs)
    return ours, own


def flux(dtype: torch.dtype) -> Calls:
    q, weight = (t.to(dtype) for t in heads(1, 576, 24, 128))
    cos, sin = tables(576, 128, interleaved=True)
    half = cos[..., ::2].contiguous(), sin[..., ::2].contiguous()
    options = LLAMA | {"interleaved": True}
    ours = partial(OPS.rms_norm_rope.out, q, weight, *half, **options, out=torch.empty_like(q))
    return ours, lambda: model_code.flux(q, weight, cos, sin)


def z_image(dtype: torch.dtype) -> Calls:
    y, h = torch.randn(2, 1, 512, 3840).to(dtype)
    weight, gate = 1 + 0.1 * torch.randn(3840).to(dtype), torch.randn(1, 1, 3840).to(dtype)
    ours = partial(
        OPS.rms_norm_add.out, y, h, weight, 1e-5, gate=gate, gate_activation="tanh",
        **LLAMA, out=torch.empty_like(y),
    )  # fmt: skip
    return ours, lambda: model_code.z_image(y, h, weight, gate)


def mamba2(dtype: torch.dtype) -> Calls:
    x, gate = torch.randn(2, 1, 512, 4096).to(dtype)
    weight = 1 + 0.1 * torch.randn(4096).to(dtype)
    ours = partial(OPS.gated_rms_norm.out, x, gate, weight, 1e-5, **LLAMA, out=torch.empty_like(x))
    return ours, lambda: model_code.mamba2(x, gate, weight)


MODELS = {
    "Qwen3, queries and keys, 512 × (32 + 8) × 128": qwen3,
    "Flux, queries, 576 × 24 × 128": flux,
    "Z-Image, end of block, 512 × 3840": z_image,
    "Mamba2, gated, 512 × 4096": mamba2,
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=number_of_turns, default=15)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--fresh", action="store_true", help="memory: glibc's usual way")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine, records = report.machine("cpu"), []
    print(f"{machine['name']}, torch {machine['torch']}")
    print(f"{'model, shape':46} {'dtype':9}{'op':>12}{'over compiled':>15}{'over eager':>12}")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        ours, own = make(getattr(torch, options.dtype))
        torch._dynamo.reset()
        candidates = {OURS: ours, "compiled": torch.compile(own), "eager": own}
        times = time_interleaved(candidates, turns=options.turns)
        record = {"model": name, "dtype": options.dtype} | report.figures(times)
        records.append(record)
        ratios = [report.ratio(record, peer) for peer in ("compiled", "eager")]
        place = f"{name:46} {options.dtype:9}"
        print(f"{place}{report.microseconds(record)}{ratios[0]:>15}{ratios[1]:>12}", flush=True)
    if options.json:
        report.write_json(options.json, machine, records)


if __name__ == "__main__":
    if "--fresh" not in sys.argv:
        keep_freed_memory()
    main()
