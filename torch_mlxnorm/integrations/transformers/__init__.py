"""transformers: the operators in a loaded model, by one line::

from torch_mlxnorm.integrations.transformers import accelerate

report = accelerate(model)
print(report)
"""

from __future__ import annotations

from torch import nn

from torch_mlxnorm.integrations import _swap
from torch_mlxnorm.integrations._model import replace_all
from torch_mlxnorm.integrations._report import Entry, Report

__all__ = ["Entry", "Report", "accelerate", "restore"]


def accelerate(model: nn.Module) -> Report:
    """The model with its norms replaced, in place, by operators with the same rounding.

    Which operator fits a module is found by running it on random input of its own dtype and device,
    beside what the operators give; it is replaced if at least 99.9 % of the elements are equal. A
    module that nothing fits is left alone. Weights stay the model's own tensors, and hooks, adapters
    and quantised layers what they are. Where gradients are wanted, or the input has another dtype
    than one that was tried, the module's own code runs.

    Args:
        model: of transformers, or any other.

    Returns:
        What was replaced and what not, and why. A second call replaces nothing more and reports
        nothing.

    See also :func:`restore`.
    """
    return replace_all(model, lambda: restore(model))


def restore(model: nn.Module) -> None:
    """Undoes :func:`accelerate`."""
    for module in model.modules():
        _swap.restore(module)
