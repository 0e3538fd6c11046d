"""Tokens a second of transformers models on the CPU, before and after `accelerate`.

    python -m torch_mlxnorm.bench.tokens [--type NAME ...] [--compiled]

Decode steps of one token with a cache of 64, one thread, bfloat16, random weights: small layers, of
which norms are a larger part than of a real model's. The model, the same with its norms replaced
and the accelerated one take turns in one run; medians of turns. With --compiled all are compiled,
and so is the model with the passes of `torch_mlxnorm.compile.inductor_options()`.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_mlxnorm import compile as compile_
from torch_mlxnorm._timing import keep_freed_memory, time_interleaved
from torch_mlxnorm.integrations._norms import Norms
from torch_mlxnorm.integrations.transformers import accelerate

from .clocks import number_of_turns

GEMMA4: dict[str, Any] = {"hidden_size_per_layer_input": 0}
MOE: dict[str, Any] = GEMMA4 | {
    "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 128,
}  # fmt: skip
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "qwen3": ("qwen3", {}),
    "olmo2": ("olmo2", {}),
    "gemma3": ("gemma3_text", {}),
    "gemma4": ("gemma4_text", GEMMA4),
    "gemma4_moe": ("gemma4_text", MOE),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 8}),
    "granite": ("granite", {"residual_multiplier": 0.22}),
    "glm4": ("glm4", {}),
}
STEPS, LENGTH = 4, 64


def build(name: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = TYPES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, vocab_size=512, pad_token_id=0, **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    if "enable_moe_block" in settings:
        model.set_experts_implementation("batched_mm")
    return model


def decoding(
    model: nn.Module, compiled: bool, options: dict[str, Any] | None = None
) -> Callable[[], Tensor]:
    """A few steps after a prompt. Each call has the same cache again."""
    prompt, token = torch.ones(1, LENGTH, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)
    after_prompt = model(prompt, use_cache=True).past_key_values
    forward = torch.compile(model, dynamic=True, options=options) if compiled else model

    def steps() -> Tensor:
        cache = copy.deepcopy(after_prompt)  # not all of them give tokens back
        for _ in range(STEPS - 1):
            forward(token, past_key_values=cache, use_cache=True)
        return forward(token, past_key_values=cache, use_cache=True).logits

    return steps


@torch.no_grad()
def measure(name: str, compiled: bool, turns: int) -> dict[str, float]:
    model = build(name)
    norms = copy.deepcopy(model)
    list(Norms(norms).replace())
    whole = copy.deepcopy(model)
    accelerate(whole)
    candidates = {
        "own": decoding(model, compiled),
        "norms": decoding(norms, compiled),
        "accelerated": decoding(whole, compiled),
    }
    if compiled:
        candidates["passes"] = decoding(copy.deepcopy(model), True, compile_.inductor_options())
    for call in candidates.values():
        call()
    times = time_interleaved(candidates, wait=lambda: None, turns=turns)
    return {name: STEPS / times.median(name) for name in candidates}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench.tokens",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--type", nargs="+", choices=TYPES, default=list(TYPES), metavar="NAME")
    parser.add_argument("--compiled", action="store_true", help="by torch.compile")
    parser.add_argument("--turns", type=number_of_turns, default=15)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.compiled:  # candidates share the code of forwards, and must not end up in eager mode
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    candidates = ["own", "norms", "accelerated", *(["passes"] if options.compiled else [])]
    print(f"{'tokens a second':16}", *(f"{candidate:>17}" for candidate in candidates))
    for name in options.type:
        found = measure(name, options.compiled, options.turns)
        texts = (f"{found[c]:8.0f} ({found[c] / found['own']:.2f}x)" for c in candidates)
        print(f"{name:16}", *(f"{text:>17}" for text in texts), flush=True)
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
