"""diffusers: the operators in a loaded pipeline or model, by one line::

from torch_mlxnorm.integrations.diffusers import accelerate

report = accelerate(pipeline)
image = pipeline(prompt).images[0]
print(report)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from torch_mlxnorm.integrations import _swap
from torch_mlxnorm.integrations._blocks import compile_blocks
from torch_mlxnorm.integrations._model import replace_all
from torch_mlxnorm.integrations._norms import Norms
from torch_mlxnorm.integrations._report import Entry, Report

__all__ = ["Entry", "Report", "accelerate", "restore"]


def accelerate(pipeline_or_model: Any, *, step: Callable[[], object] | None = None) -> Report:
    """A pipeline or model with its norms, and what is around them, replaced in place by operators
    with the same rounding.

    - **Norms.** Each is run on random input and weights of its own dtype and device, beside what
      the operators give. The one with at least 99.9 % equal elements takes its place.
    - **Blocks**, the modules of lists, run as graphs that :mod:`torch_mlxnorm.compile` rewrites, op
      by op as before: norms of queries and keys with their rotary embedding become
      ``qk_norm_rope``; ``N(x) * (1 + scale) + shift`` and ``h + gate * N(x)`` become the operators
      of modulation and residuals. When a block is first called (and again where PyTorch has to
      compile another graph for it) its own code runs as well; with fewer than 99.99 % equal
      elements that stays.
    - **Text encoders** of transformers become what
      :func:`torch_mlxnorm.integrations.transformers.accelerate` makes of them.

    What nothing fits is left alone, and the report says why. Class names decide nothing. Weights
    stay the model's own tensors; processors of attention, adapters and quantised matrices what they
    are. The model's own code runs where gradients are enabled, under autocast, under
    :func:`torch.compile` (which sees the replaced norms) and in training.

    Args:
        pipeline_or_model: of diffusers, or any module, on the CPU or MPS.
        step: is called once, without gradients, so that blocks are compiled and compared now, and
            the report is complete: ``lambda: model(**inputs)``. Without it the first step does it,
            and the report tells of blocks what it knows when it is printed.

    Returns:
        What was replaced and what not. A second call finds nothing more to do.

    Raises:
        TypeError: it is neither a module nor has modules as its ``components``.

    See also :func:`restore`, and docs/image-models.md.
    """
    report = Report([], lambda: restore(pipeline_or_model))
    for name, module in _modules_of(pipeline_or_model):
        prefix = f"{name}." if name else ""
        if _is_of_transformers(module):
            found = replace_all(module, lambda: None).entries
            report.entries += [_below(prefix, entry) for entry in found]
            continue
        report.entries += [_below(prefix, entry) for entry in Norms(module).replace()]
        compile_blocks(module, report, prefix)
    if step is not None:
        with torch.no_grad():
            step()
    return report


def restore(pipeline_or_model: Any) -> None:
    """Undoes :func:`accelerate`.

    Raises:
        TypeError: it is neither a module nor has modules as its ``components``.
    """
    for _, module in _modules_of(pipeline_or_model):
        for part in module.modules():
            _swap.restore(part)


def _modules_of(pipeline_or_model: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(pipeline_or_model, nn.Module):
        yield "", pipeline_or_model
        return
    components = getattr(pipeline_or_model, "components", None)
    if not isinstance(components, dict):
        kind = type(pipeline_or_model).__name__
        raise TypeError(f"accelerate: expected a module, or a pipeline with components, got {kind}")
    for name, module in components.items():
        if isinstance(module, nn.Module):
            yield name, module


def _is_of_transformers(module: nn.Module) -> bool:
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def _below(prefix: str, entry: Entry) -> Entry:
    return Entry(**{**vars(entry), "path": prefix + entry.path}) if prefix else entry
