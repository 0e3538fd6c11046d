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
    """The model with its norms, and what is around them, replaced in place by operators with the
    same rounding.

    - **Norms.** Each is run on random input and weights of its own dtype and device, beside what
      the operators give. The one with at least 99.9 % equal elements takes its place.
    - **Attentions** whose norms of queries and keys are rotated next call one operator for both.
    - **Layers**, the modules of lists, are traced by `torch.fx` with their children as leaves. Sums
      of the residual stream, factors, layer scalars and the experts' sum become part of operators
      with the norms before and after them, also with the norm that the next layer begins with. A
      layer beside the same with only its norms replaced has at least 99.99 % equal elements.

    What nothing fits is left alone, and the report says why. Class names decide nothing. Weights
    stay the model's own tensors, and hooks, adapters and quantised matrices what they are. The
    model's own code runs where gradients are enabled, under autocast and under `torch.compile`
    (which sees the replaced norms), and for dtypes that were not tried: call the model under
    :func:`torch.no_grad`, as `generate` does. Under :func:`torch.inference_mode` a layer's first
    norm is a call of its own, because changes in place could not be seen.

    Args:
        model: of transformers, or any other, on the CPU or MPS.

    Returns:
        What was replaced and what not. A second call finds nothing more to do.

    Raises:
        RuntimeError: at a call, if an attention does not rotate what it has normalized although it
            did when it was tried; :func:`restore` undoes the replacement.

    See also :func:`restore`, and docs/models.md.
    """
    return replace_all(model, lambda: restore(model))


def restore(model: nn.Module) -> None:
    """Undoes :func:`accelerate`."""
    for module in model.modules():
        _swap.restore(module)
