"""Where public models use the ops, as their config.json and model code state it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch_mlxnorm import CastingMode


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
    options: Mapping[str, str] = field(default_factory=dict)


GEMMA, GEMMA_DENSE, LLAMA, QWEN = "Gemma 4 26B-A4B", "Gemma 4 31B", "Llama 3 8B", "Qwen3 8B"
QWEN_NEXT, LTX, MAMBA = "Qwen3-Next 80B-A3B", "LTX-Video 2B", "Mamba2 1.3B"
Z_IMAGE = "Z-Image 6B"
SILU, TANH_GATE = {"activation": "silu"}, {"gate_activation": "tanh"}
GEMMA_HEADS = {"q": "rows 16 dim"}
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
    Use("rms_norm_modulate", LTX, "before attention", 2048, shapes={"weight": None}),
    Use("gated_rms_norm", MAMBA, "after the scan", 4096, 1, 1e-5, "llama"),
    Use("rms_norm_rope", QWEN, "query heads", 128, 32, 1e-6, "llama"),
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
PHASES = {"decode": 1, "prefill": 512}  # tokens
