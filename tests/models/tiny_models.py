"""Models of transformers with a few small layers and random weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torch_mlxnorm.integrations._norms import Norms

USUAL = dict(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, vocab_size=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    attn_implementation="eager",
)  # fmt: skip
MOE = dict(
    enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32,
    hidden_size_per_layer_input=0,
)  # fmt: skip
LINEAR_ATTENTION = dict(
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16,
    linear_value_head_dim=16, layer_types=["linear_attention", "full_attention"],
)  # fmt: skip
QWEN_MOE = dict(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
    shared_expert_intermediate_size=32,
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """launches: of a decode layer's norms, and what is fused with them: before and after."""

    model_type: str
    launches: tuple[int, int]
    settings: dict[str, Any] = field(default_factory=dict)
    experts: bool = False


FAMILIES = {
    "llama": Family("llama", (18, 2)),
    "mistral": Family("mistral", (18, 2)),
    "qwen3": Family("qwen3", (44, 3)),
    "qwen3_next": Family("qwen3_next", (34, 3), LINEAR_ATTENTION | QWEN_MOE),
    "qwen3_5": Family("qwen3_5_text", (34, 3), LINEAR_ATTENTION),
    "olmo2": Family("olmo2", (44, 4)),
    "gemma3": Family("gemma3_text", (71, 3)),
    "gemma4_dense": Family("gemma4_text", (74, 5), {"hidden_size_per_layer_input": 0}),
    "gemma4_ple": Family("gemma4_text", (84, 6), {"hidden_size_per_layer_input": 16}),
    "gemma4_moe": Family("gemma4_text", (111, 7), MOE, experts=True),
    "gpt_oss": Family("gpt_oss", (18, 2), {"num_local_experts": 4}),
    "granite": Family("granite", (20, 2), {"residual_multiplier": 0.22}),
    "glm4": Family("glm4", (34, 2)),
}


def are_there(families: dict[str, Family]) -> dict[str, Family]:
    """Those of the transformers that is installed."""
    from transformers import CONFIG_MAPPING

    return {
        name: family for name, family in families.items() if family.model_type in CONFIG_MAPPING
    }


FAMILIES = are_there(FAMILIES)


def build(
    name: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0, layers: int = 2
) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    family = FAMILIES[name]
    torch.manual_seed(seed)
    settings = USUAL | family.settings | {"num_hidden_layers": layers}
    config = AutoConfig.for_model(family.model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.3)
    if family.experts:
        model.set_experts_implementation("batched_mm")
    return model


def count_norms(model: nn.Module) -> int:
    return sum(type(module).__name__.endswith("RMSNorm") for module in model.modules())


def with_norms(model: nn.Module) -> nn.Module:
    """A copy of which only the norms are replaced."""
    other = copy.deepcopy(model)
    assert all(entry.op for entry in Norms(other).replace())
    return other


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 128, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids.to(model.device)).logits.cpu()


@torch.no_grad()
def greedy(model: nn.Module, ids: Tensor, count: int) -> list[int]:
    """As generate does it, which asks a device for more than the simulated one has."""
    cache, found = None, []
    ids = ids.to(model.device)
    for _ in range(count):
        result = model(ids, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        ids = result.logits[:, -1].argmax(-1, keepdim=True)
        found += ids.flatten().tolist()
    return found
