"""Kernels of a decode step, before and after `accelerate`.

    python -m torch_mlxnorm.count MODEL [--random] [--dtype bfloat16] [--device cpu]

MODEL is a folder or a name that transformers loads; or, with --random, the name of a model type
such as ``qwen3``, whose default configuration gets random weights. A line for each kind of layer:
the kernels of its norms, and of the sums, factors and rotations that are fused with them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from torch_mlxnorm.integrations._launches import Launches
from torch_mlxnorm.integrations._report import Report
from torch_mlxnorm.integrations.transformers import accelerate


@dataclass(frozen=True)
class Line:
    """Of layers that are alike, or of what is in no layer."""

    name: str
    number: int  # of them
    before: int  # kernels in a step of one of them
    after: int


@dataclass(frozen=True)
class Count:
    """before, after: all kernels of the step, matrices and attention among them."""

    lines: list[Line]
    before: int
    after: int

    def __str__(self) -> str:
        width = max(len(line.name) for line in self.lines)
        lines = [
            f"{line.name:{width}}  {line.number:3} times  {line.before:4} -> {line.after}"
            for line in self.lines
        ]
        total = f"all kernels of the step: {self.before} -> {self.after}"
        return "\n".join(["kernels of norms and what is fused with them:", *lines, total])


def count(model: nn.Module, step: Callable[[], object]) -> Count:
    """Of a model that has not been accelerated; afterwards it is again what it was.

    Args:
        model: on the CPU or MPS.
        step: runs it once, ``lambda: model(token, past_key_values=cache)`` for a decode step.
    """
    before = kernels(step)
    report = accelerate(model)
    try:
        after = kernels(step)
    finally:
        report.restore()
    return Count(lines_of(report), before, after)


@torch.no_grad()
def kernels(step: Callable[[], object]) -> int:
    with Launches() as launches:
        step()
    return launches.total


def lines_of(report: Report) -> list[Line]:
    layers: dict[str, list[int]] = {}
    for entry in report.replaced:
        found = re.match(r"(.*?\.\d+)(\.|$)", entry.path)
        sums = layers.setdefault(found[1] if found else "outside of layers", [0, 0])
        sums[0] += entry.launches_before
        sums[1] += entry.launches_after
    kinds: dict[tuple[str, int, int], list[str]] = {}
    for path, (before, after) in layers.items():
        kinds.setdefault((re.sub(r"\d+$", "*", path), before, after), []).append(path)
    return [Line(paths[0], len(paths), *kind[1:]) for kind, paths in kinds.items()]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.count",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model")
    parser.add_argument("--random", action="store_true", help="a model type with random weights")
    parser.add_argument("--layers", type=int, default=4, help="of a random model")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        parser.error("transformers is not installed: pip install transformers")
    dtype = getattr(torch, options.dtype)
    if options.random:
        config = AutoConfig.for_model(options.model, num_hidden_layers=options.layers)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    model = model.eval().to(options.device)
    token = torch.ones(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        cache = model(token, use_cache=True).past_key_values
    print(count(model, lambda: model(token, past_key_values=cache, use_cache=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
