"""Kernels of a decode step, before and after `accelerate`; bytes of a denoising step.

    python -m torch_mlxnorm.count MODEL [--random] [--dtype bfloat16] [--device cpu]
    python -m torch_mlxnorm.count --images [NAME ...]

MODEL is a folder or a name that transformers loads; or, with --random, the name of a model type
such as ``qwen3``, whose default configuration gets random weights. A line for each kind of layer:
the kernels of its norms, and of the sums, factors and rotations that are fused with them.

With --images a line for each of the transformers of diffusers in
:mod:`torch_mlxnorm.bench.image_models`, at the sizes of the published models, on the device "meta",
which computes nothing: bytes that the kernels of RMS norms read and write, with the rotary
embedding, modulation, gates and sums that hang together with them, and beside them those of layer
norms, which stay what they are. What belongs to which is told by
:class:`torch_mlxnorm.integrations._bytes.Bytes`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from torch_mlxnorm.integrations import diffusers
from torch_mlxnorm.integrations._bytes import (
    Bytes,
    attention_as_one_kernel,
    rms_norm_as_one_kernel,
)
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


@dataclass(frozen=True)
class BytesOfStep:
    """Of the chains of RMS norms, by kernel: before, after, and before with PyTorch's own norm as
    the one kernel that it is on MPS (where it is not one already). `layer_norms`: of those of layer
    norms, which stay."""

    before: dict[str, int]
    after: dict[str, int]
    with_own_norm: dict[str, int]
    layer_norms: int

    def __str__(self) -> str:
        own, mps, after = (
            sum(kernels.values()) / 1e9 for kernels in (self.before, self.with_own_norm, self.after)
        )
        times = f"{own / after:4.1f} ({mps / after:.1f}) times fewer"
        others = f"layer norms {self.layer_norms / 1e9:.3f}"
        return f"{own:9.3f} GB (on MPS {mps:8.3f}) -> {after:7.3f}: {times}; {others}"


@torch.no_grad()
def bytes_of_step(model: nn.Module, step: Callable[[], object]) -> BytesOfStep:
    """Of a model of diffusers that has not been accelerated; afterwards it is again what it was.

    Args:
        model: on "meta", where attention counts as one kernel and nothing is computed, on the CPU
            or on MPS.
        step: runs it once, ``lambda: model(**inputs)``.
    """
    before, own_norm, after = Bytes(), Bytes(), Bytes()
    with contextlib.ExitStack() as stack:
        if next(model.parameters()).is_meta:
            stack.enter_context(attention_as_one_kernel())
        with before:
            step()
        with rms_norm_as_one_kernel(), own_norm:
            step()
        report = diffusers.accelerate(model, step=step)
        try:
            with after:
                step()
        finally:
            report.restore()
    kernels = (dict(counted.by_kernel().most_common()) for counted in (before, after, own_norm))
    return BytesOfStep(*kernels, after.of_layer_norms)


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


def print_bytes(names: list[str], dtype: torch.dtype) -> None:
    from torch_mlxnorm.bench.image_models import MODELS

    for name in names or MODELS:
        image_model = MODELS[name]
        model = image_model.make(dtype, "meta")
        try:
            counted: object = bytes_of_step(model, functools.partial(image_model.step, model))
        except (NotImplementedError, RuntimeError) as error:  # Lumina 2 counts the tokens of masks
            counted = f'its code asks for values, which "meta" has not: {error}'.splitlines()[0]
        print(f"{name:12}", counted)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.count",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="*")
    parser.add_argument("--images", action="store_true", help="bytes of models of diffusers")
    parser.add_argument("--random", action="store_true", help="a model type with random weights")
    parser.add_argument("--layers", type=int, default=4, help="of a random model")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    if options.images:
        try:
            print_bytes(options.model, dtype)
        except ImportError:
            parser.error("diffusers is not installed: pip install diffusers")
        return 0
    if len(options.model) != 1:
        parser.error("one model is needed")
    (name,) = options.model
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        parser.error("transformers is not installed: pip install transformers")
    if options.random:
        config = AutoConfig.for_model(name, num_hidden_layers=options.layers)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    model = model.eval().to(options.device)
    token = torch.ones(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        cache = model(token, use_cache=True).past_key_values
    print(count(model, lambda: model(token, past_key_values=cache, use_cache=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
