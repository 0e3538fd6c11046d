"""Where the ops are timed: sizes of rows and of their number, and where public models use the ops,
as their config.json and model code state it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_mlxnorm import CastingMode
from torch_mlxnorm._calls import TOP_K
from torch_mlxnorm._roles import LIKES, OPS

from .compositions import COMPOSITIONS


@dataclass(frozen=True)
class Use:
    op: str
    model: str
    name: str
    dim: int
    rows_per_token: int = 1  # heads, for a norm of each head
    eps: float = 1e-6
    casting_mode: CastingMode = "gemma"
    # Of inputs that are not as compositions.py has them; None: there is none.
    shapes: Mapping[str, str | None] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 4096  # of a prefill, or of an image or a video, on a GPU
    tokens_on_cpu: int = 512


GEMMA, GEMMA_DENSE, LLAMA, QWEN = "Gemma 4 26B-A4B", "Gemma 4 31B", "Llama 3 8B", "Qwen3 8B"
QWEN_NEXT, LTX, MAMBA = "Qwen3-Next 80B-A3B", "LTX-Video 2B", "Mamba2 1.3B"
QWEN_IMAGE, WAN_VAE = "Qwen-Image VAE", "Wan 2.1 VAE"
Z_IMAGE, FLUX, WAN, ZAMBA = "Z-Image 6B", "FLUX.1 12B", "Wan 2.1 14B", "Zamba2 7B"
SILU, TANH_GATE = {"activation": "silu"}, {"gate_activation": "tanh"}
GEMMA_HEADS = {"q": "rows 16 dim"}
PAIRS = {"interleaved": True}
IMAGE_TABLES = {"cos": "rows 1 half float32", "sin": "rows 1 half float32"}
FLUX_HEADS = {"x": "rows 24 dim"} | IMAGE_TABLES
WAN_HEADS = {"x": "rows 40 dim", "weight": "5120"} | IMAGE_TABLES
USES = [
    Use("rms_norm", GEMMA, "hidden", 2816),
    Use("rms_norm", GEMMA, "query heads", 256, 16),
    Use("rms_norm", GEMMA, "value heads", 256, 8, shapes={"weight": None}),
    Use("rms_norm", GEMMA, "query heads, global", 512, 16),
    Use("rms_norm", LLAMA, "hidden", 4096, 1, 1e-5, "llama"),
    Use("rms_norm", QWEN, "hidden", 4096, 1, 1e-6, "llama"),
    Use("rms_norm", QWEN, "query heads", 128, 32, 1e-6, "llama"),
    Use("rms_norm_mul", GEMMA, "router", 2816, shapes={"weight": None, "scale": "dim"}),
    Use("rms_norm_mul", QWEN_NEXT, "gated heads", 128, 32, 1e-6, "llama", options=SILU),
    Use("rms_norm", WAN, "query, all heads", 5120, 1, 1e-6, "llama", tokens=32760),
    Use("rms_norm_modulate", LTX, "before attention", 2048, shapes={"weight": None}),
    Use("gated_rms_norm", MAMBA, "after the scan", 4096, 1, 1e-5, "llama"),
    Use(
        "gated_rms_norm",
        ZAMBA,
        "after the scan, in groups",
        7168,
        1,
        1e-5,
        "llama",
        options={"group_size": 3584},
    ),
    # Rows are the lines of an image, and of each frame of a video.
    Use(
        "channel_rms_norm",
        QWEN_IMAGE,
        "decoder, 1024 x 1024",
        384,
        eps=1e-12,
        shapes={"x": "1 dim 1 rows 1024", "gamma": "dim 1 1 1"},
        tokens=1024,
        tokens_on_cpu=16,
    ),
    Use(
        "channel_rms_norm",
        WAN_VAE,
        "decoder, 480p, without silu",
        96,
        eps=1e-12,
        shapes={"x": "1 dim 17 rows 832", "gamma": "dim 1 1 1"},
        tokens=480,
        tokens_on_cpu=4,
    ),
    Use(
        "channel_rms_norm",
        WAN_VAE,
        "decoder, 480p",
        96,
        eps=1e-12,
        shapes={"x": "1 dim 17 rows 832", "gamma": "dim 1 1 1"},
        options={"silu": True},
        tokens=480,
        tokens_on_cpu=4,
    ),
    Use("rms_norm_rope", QWEN, "query heads", 128, 32, 1e-6, "llama"),
    Use(
        "rms_norm_rope",
        FLUX,
        "query heads",
        128,
        1,
        1e-6,
        "llama",
        shapes=FLUX_HEADS,
        options=PAIRS,
        tokens=4608,
    ),
    Use(
        "rms_norm_rope",
        WAN,
        "query, all heads",
        128,
        1,
        1e-6,
        "llama",
        shapes=WAN_HEADS,
        options=PAIRS | {"across_heads": True},
        tokens=32760,
    ),
    Use("qk_norm_rope", QWEN, "heads", 128, 1, 1e-6, "llama"),
    Use("qkv_norm_rope", GEMMA, "heads", 256, shapes=GEMMA_HEADS),
    # For the MLP, the router and the experts; the router's norm has no weight.
    Use("rms_norm_triple", GEMMA, "before MLP, MoE", 2816, shapes={"weight_b": None}),
    Use("add_rms_norm", LLAMA, "before MLP", 4096, 1, 1e-5, "llama"),
    Use("rms_norm_add", GEMMA_DENSE, "end of layer", 5376),
    Use("rms_norm_add_rms_norm", GEMMA_DENSE, "after attention", 5376),
    # The ends of attention and of the block; rows of modulation that all tokens share.
    Use(
        "rms_norm_add_rms_norm",
        Z_IMAGE,
        "after attention",
        3840,
        1,
        1e-5,
        "llama",
        shapes={"gate": "dim", "next_scale": "dim"},
        options=TANH_GATE,
    ),
    Use(
        "rms_norm_add",
        Z_IMAGE,
        "end of block",
        3840,
        1,
        1e-5,
        "llama",
        shapes={"scale": None, "gate": "dim"},
        options=TANH_GATE,
    ),
    Use("fused_post_attn_triple_norm", GEMMA, "after attention", 2816, shapes={"weight_b": None}),
    Use("fused_post_ff_norm2_endlayer", GEMMA, "end of layer", 2816),
    Use("fused_moe_wsum_post_ff_norm2_endlayer", GEMMA, "end of layer", 2816),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Dtypes = Sequence[torch.dtype]

# Rows and dims; of heads: tokens, and the dim of a head.
CPU_SHAPES = ["1x2816", "16x2816", "512x2816", "2048x2816", "4096x4096", "65536x128"]
CPU_FUSED_SHAPES = ["2048x2816", "1x2816"]
CPU_SHAPES_OF_HEADS = ["512x128", "1x128"]
GPU_SHAPES = [
    *("1x2816", "8x4096", "1x16384"),
    *("32768x256", "65536x128", "2455x2816", "4096x4096", "16384x2816", "4096x8192"),
    *("1024x16384", "512x65536", "2455x2817"),
]
OF_HEADS = [op for op, known in COMPOSITIONS.items() if "cos" in known.shapes]


@dataclass(frozen=True)
class Line:
    """What is timed, in one dtype."""

    use: Use
    rows: int
    dtype: torch.dtype

    def inputs(self) -> dict[str, Tensor | None]:
        """Without data."""
        dim, shapes = self.use.dim, COMPOSITIONS[self.use.op].shapes | dict(self.use.shapes)
        sizes = {"rows": self.rows, "top_k": TOP_K, "dim": dim, "half": dim // 2}

        def tensor(shape: str) -> Tensor:
            *names, last = shape.split()
            dtype = torch.float32 if last == "float32" else self.dtype
            names += [] if last == "float32" else [last]
            return torch.empty([sizes.get(n) or int(n) for n in names], dtype=dtype, device="meta")

        return {name: None if shape is None else tensor(shape) for name, shape in shapes.items()}

    def outs(self) -> dict[str, Tensor]:
        """Without data."""
        op, inputs, outs = self.use.op, self.inputs(), {}
        for name, like in LIKES[op].items():
            tensor = inputs[like]
            assert tensor is not None
            outs[name] = tensor[..., 0, :] if OPS[op][like] == "experts" else tensor
        return outs

    @property
    def shape(self) -> str:
        """Of the first result: "4096x2816", or of all heads "4096x32x128"."""
        return "x".join(map(str, next(iter(self.outs().values())).shape))

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def of_shape(op: str, shape: str, dtype: torch.dtype) -> Line:
    rows, dim = map(int, shape.split("x"))
    return Line(Use(op, "", "", dim), rows, dtype)


def shapes_of(op: str, device: str) -> list[str]:
    if device != "cpu":
        return [] if op in OF_HEADS else GPU_SHAPES  # heads: as models have them
    if op in OF_HEADS:
        return CPU_SHAPES_OF_HEADS
    return CPU_SHAPES if op == "rms_norm" else CPU_FUSED_SHAPES


def lines_by_shape(device: str, dtypes: Dtypes = ()) -> Iterator[Line]:
    """In those dtypes, or in all that are of interest there."""
    for op in COMPOSITIONS:
        fused_on_cpu = device == "cpu" and op != "rms_norm"
        for shape in shapes_of(op, device):
            for dtype in dtypes or (DTYPES[:2] if fused_on_cpu else DTYPES):
                yield of_shape(op, shape, dtype)


def lines_by_model(device: str, dtypes: Dtypes = ()) -> Iterator[Line]:
    for use in USES:
        for tokens in (1, use.tokens_on_cpu if device == "cpu" else use.tokens):  # decode, prefill
            for dtype in dtypes or ([torch.bfloat16] if device == "cpu" else DTYPES):
                yield Line(use, tokens * use.rows_per_token, dtype)
