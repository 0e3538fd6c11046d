"""The RMS norms of public models, as their config.json and model code state them."""

from __future__ import annotations

from dataclasses import dataclass

from torch_mlxnorm import CastingMode


@dataclass(frozen=True)
class Norm:
    model: str
    name: str
    dim: int
    rows_per_token: int  # heads, for a norm of each head
    eps: float
    casting_mode: CastingMode
    has_weight: bool = True


NORMS = [
    Norm("Gemma 4 26B-A4B", "hidden", 2816, 1, 1e-6, "gemma"),
    Norm("Gemma 4 26B-A4B", "query heads", 256, 16, 1e-6, "gemma"),
    Norm("Gemma 4 26B-A4B", "value heads", 256, 8, 1e-6, "gemma", has_weight=False),
    Norm("Gemma 4 26B-A4B", "query heads, global", 512, 16, 1e-6, "gemma"),
    Norm("Llama 3 8B", "hidden", 4096, 1, 1e-5, "llama"),
    Norm("Qwen3 8B", "hidden", 4096, 1, 1e-6, "llama"),
    Norm("Qwen3 8B", "query heads", 128, 32, 1e-6, "llama"),
]
PHASES = {"decode": 1, "prefill": 512}  # tokens
