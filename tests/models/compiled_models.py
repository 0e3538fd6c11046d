"""Models of transformers with random weights, whose norms torch.compile has to find."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
_GEMMA4 = _SIZES | {
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 64,
    "num_kv_shared_layers": 0,
    "sliding_window": 16,
}
_MOE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}

# Config class, its arguments, norms of a layer, norms beside the layers.
FAMILIES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "Llama": ("LlamaConfig", _SIZES, 2, 1),
    "Qwen3": ("Qwen3Config", _SIZES, 4, 1),
    "OLMo 2": ("Olmo2Config", {k: v for k, v in _SIZES.items() if k != "head_dim"}, 4, 1),
    "Gemma 3": ("Gemma3TextConfig", _SIZES, 6, 1),
    "Gemma 4": ("Gemma4TextConfig", _GEMMA4, 7, 1),
    "Gemma 4 MoE": ("Gemma4TextConfig", _GEMMA4 | _MOE, 11, 1),
    "Gemma 4 PLE": ("Gemma4TextConfig", _GEMMA4 | {"hidden_size_per_layer_input": 8}, 8, 2),
}


def model_of(family: str, dtype: torch.dtype, layers: int = 2) -> nn.Module:
    import transformers

    name, arguments, *_ = FAMILIES[family]
    if name == "Gemma4TextConfig":
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
        arguments = arguments | {"layer_types": kinds}
    config = getattr(transformers, name)(num_hidden_layers=layers, **arguments)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter_name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in parameter_name or "scal" in parameter_name:
                value.copy_(0.75 + torch.rand(value.shape) / 2)
    return model.requires_grad_(False)


def norms_of(family: str, layers: int) -> int:
    _, _, each, beside = FAMILIES[family]
    return each * layers + beside
