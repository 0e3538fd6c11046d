"""CPU kernels against models' own code, as tests/test_models.py has it: eager, and compiled by
Inductor.

    python benchmarks/models.py [--turns N] [--dtype bfloat16] [--fresh]

One thread; each turn times all three one after another, the op writing to its outs and the compiled
code to tensors of its own. Speed-ups are medians over the turns. Freed memory is kept, so that no
fresh result costs a page fault; --fresh lets glibc give it back, as it usually does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from torch_mlxnorm._timing import keep_freed_memory, time_interleaved

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import test_models as models  # noqa: E402

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


Calls = tuple[Callable[[], object], Callable[[], object]]  # ours, and the model's


def qwen3(dtype: torch.dtype) -> Calls:
    (q, q_weight), (k, k_weight) = heads(1, 512, 32, 128), heads(1, 512, 8, 128)
    cos, sin = tables(512, 128, interleaved=False)
    q, k, q_weight, k_weight, cos, sin = (t.to(dtype) for t in (q, k, q_weight, k_weight, cos, sin))

    def own() -> object:
        return models.transformers(q, q_weight, cos, sin), models.transformers(
            k, k_weight, cos, sin
        )

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
    return ours, lambda: models.flux(q, weight, cos, sin)


def z_image(dtype: torch.dtype) -> Calls:
    y, h = torch.randn(2, 1, 512, 3840).to(dtype)
    weight, gate = 1 + 0.1 * torch.randn(3840).to(dtype), torch.randn(1, 1, 3840).to(dtype)
    ours = partial(
        OPS.rms_norm_add.out, y, h, weight, 1e-5, gate=gate, gate_activation="tanh",
        **LLAMA, out=torch.empty_like(y),
    )  # fmt: skip
    return ours, lambda: models.z_image(y, h, weight, gate)


def mamba2(dtype: torch.dtype) -> Calls:
    x, gate = torch.randn(2, 1, 512, 4096).to(dtype)
    weight = 1 + 0.1 * torch.randn(4096).to(dtype)
    ours = partial(OPS.gated_rms_norm.out, x, gate, weight, 1e-5, **LLAMA, out=torch.empty_like(x))
    return ours, lambda: models.mamba2(x, gate, weight)


MODELS = {
    "Qwen3, 512 x (32 + 8) x 128": qwen3,
    "Flux, 576 x 24 x 128": flux,
    "Z-Image, 512 x 3840": z_image,
    "Mamba2, 512 x 4096": mamba2,
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--fresh", action="store_true", help="memory: glibc's usual way")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, arguments.dtype)
    print(f"{'model, shape':30} {'dtype':9}{'op':>10}{'over compiled':>15}{'over eager':>12}")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        ours, own = make(dtype)
        torch._dynamo.reset()
        candidates = {"ours": ours, "compiled": torch.compile(own), "eager": own}
        times = time_interleaved(candidates, turns=arguments.turns)
        ratios = [times.speedup("ours", over=other) for other in ("compiled", "eager")]
        line = f"{name:30} {arguments.dtype:9}{times.median('ours') * 1e6:8.0f}us"
        print(line + f"{ratios[0]:14.2f}x{ratios[1]:11.2f}x", flush=True)


if __name__ == "__main__":
    if "--fresh" not in sys.argv:
        keep_freed_memory()
    main()
