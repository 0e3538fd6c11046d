"""Layers for Hugging Face's `kernels`, from this installation and without the hub::

    from kernels import Mode, kernelize
    import torch_mlxnorm.integrations.kernels as mlxnorm_kernels

    mlxnorm_kernels.register()
    model = kernelize(model, mode=Mode.INFERENCE)     # or from_pretrained(..., use_kernels=True)

`RMSNorm`, `RMSNormZeroCentered` and `RMSNormGated` serve mps and cpu. Modules of one layer name
round differently (Llama's before the weight, Olmo2's after it): what fits a module is found when it
is first called, by running its class's own code beside the operators, and its own code runs where
nothing fits. There is no `rotary_pos_emb`: what such a layer is given has been normalized already.

`accelerate` of `torch_mlxnorm.integrations.transformers` does more than layers can: residual sums,
rotary embedding and ends of layers become part of the operators.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torch_mlxnorm.integrations import _swap
from torch_mlxnorm.integrations._norms import fitting_forward

DEVICES = ("mps", "cpu")
FOUND = _swap.OURS + "kernel"


def _run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What fits a module of a model, whose forward a layer has replaced."""
    forward = vars(module).get(FOUND)
    if forward is None:
        forward = fitting_forward(module, type(module).forward) or type(module).forward
        vars(module)[FOUND] = forward
    return forward(module, *args, **kwargs)


class RMSNorm(nn.Module):
    """`kernels` puts this forward into modules of a model, so `self` is one of those."""

    can_torch_compile = False  # what fits is found at a call
    has_backward = True  # where gradients are wanted, the module's own code runs

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _run(self, hidden_states)


class RMSNormZeroCentered(RMSNorm):
    """The same of a norm whose weight is stored without its 1."""


class RMSNormGated(nn.Module):
    """The same of a norm with a gate."""

    can_torch_compile = False
    has_backward = True

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return _run(self, hidden_states) if gate is None else _run(self, hidden_states, gate)


class _Here:
    """What `kernels` asks a repository for."""

    def __init__(self, layer: type[nn.Module]) -> None:
        self.layer, self.layer_name = layer, layer.__name__

    def load(self) -> type[nn.Module]:
        return self.layer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Here) and self.layer is other.layer

    def __hash__(self) -> int:
        return hash(self.layer)

    def __str__(self) -> str:
        return f"torch_mlxnorm (layer `{self.layer_name}`)"


def mapping() -> dict[str, dict[str, Any]]:
    """For `kernels.use_kernel_mapping`: of each layer name and device."""
    _require_hooks()
    from kernels import Mode

    return {
        layer.__name__: {device: {Mode.INFERENCE: _Here(layer)} for device in DEVICES}
        for layer in (RMSNorm, RMSNormZeroCentered, RMSNormGated)
    }


def register() -> None:
    """Makes `kernelize` use these layers on mps and cpu, in this process.

    Raises:
        ImportError: there is no `kernels`, or transformers does not use the one that there is, as
            it silently does with versions that it does not know.
    """
    from kernels import register_kernel_mapping

    register_kernel_mapping(mapping())


def _require_hooks() -> None:
    try:
        import kernels
    except ImportError as error:
        raise ImportError("kernels is not installed: pip install kernels") from error
    try:
        import transformers
        from transformers.utils import is_kernels_available
    except ImportError:
        return  # other models have decorators of their own
    if not is_kernels_available():
        raise ImportError(
            f"transformers {transformers.__version__} does not take kernels {kernels.__version__} "
            "and would silently run without its layers: install a version that it accepts"
        )


__all__ = ["RMSNorm", "RMSNormGated", "RMSNormZeroCentered", "mapping", "register"]
