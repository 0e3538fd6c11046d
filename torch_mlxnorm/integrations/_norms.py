"""The norms of a model, replaced in place by what fits them."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import _swap
from ._fused import OPTIONS, READY, Options, take_ready
from ._probe import Dtypes, Norm, Verdict, is_called_norm, norm_of, probe
from ._report import Entry


def has_kernels_for(device: torch.device) -> bool:
    key = {"cpu": "CPU", "mps": "MPS", "cuda": "CUDA"}.get(device.type)
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return key is not None and has_kernel("mlxnorm::rms_norm", key)


class Norms:
    """Of a model. What is alike is probed once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.verdicts: dict[Hashable, tuple[Verdict, Any]] = {}
        self.parents = {
            id(child): parent for parent in model.modules() for child in parent.children()
        }

    def replace(self) -> Iterator[Entry]:
        for path, module in self.model.named_modules():
            if _swap.is_swapped(module):
                continue
            if isinstance(module, nn.LayerNorm):
                yield Entry(path, type(module).__name__, reason="it takes the mean off")
                continue
            norm = norm_of(module)
            if norm is not None:
                yield from self._replace(path, norm)
            elif is_called_norm(module) and not any(True for _ in module.children()):
                yield Entry(
                    path,
                    type(module).__name__,
                    reason="it has more than a weight, or arguments beside x",
                )

    def _replace(self, path: str, norm: Norm) -> Iterator[Entry]:
        name = type(norm.module).__name__
        device = self._device(norm)
        if not has_kernels_for(device):
            yield Entry(path, name, reason=f"there are no kernels for {device.type}")
            return
        own = self._dtypes(norm)
        key = _kind(norm, own, device)
        if key not in self.verdicts:
            verdict = probe(norm, own, device)
            forward = None if verdict.form is None else _forward(norm, verdict)
            self.verdicts[key] = verdict, forward
        verdict, forward = self.verdicts[key]
        if verdict.form is None:
            if is_called_norm(norm.module):
                yield Entry(path, name, equal=verdict.equal, reason=verdict.reason)
            return
        _swap.swap(norm.module, forward)
        form = verdict.form
        if form.op == "rms_norm" and not form.prepare and norm.weight in ("weight", None):
            vars(norm.module)[OPTIONS] = Options(verdict.eps, form.options, verdict.dtypes)
        yield Entry(
            path, name, str(verdict.form), verdict.equal, verdict.launches, verdict.form.launches
        )

    def _ancestors(self, module: nn.Module) -> Iterator[nn.Module]:
        """The module itself first."""
        here: nn.Module | None = module
        while here is not None:
            yield here
            here = self.parents.get(id(here))

    def _device(self, norm: Norm) -> torch.device:
        """Where it runs, which for weights that are offloaded a hook knows."""
        for module in self._ancestors(norm.module):
            hook = getattr(module, "_hf_hook", None)
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
            for parameter in module.parameters():
                if parameter.device.type != "meta":
                    return parameter.device
        return torch.device("cpu")

    def _dtypes(self, norm: Norm) -> Dtypes:
        """Of x, as the matrices around it have it, and of the weight."""
        weight = None if norm.weight is None else norm.module._parameters[norm.weight]
        for module in self._ancestors(norm.module):
            for parameter in module.parameters():
                if (
                    parameter is not weight
                    and parameter.dim() > 1
                    and parameter.is_floating_point()
                ):
                    return parameter.dtype, (parameter if weight is None else weight).dtype
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
        return dtype, dtype


def fitting_forward(module: nn.Module, function: Any) -> Any:
    """Of a norm whose own forward is that function; None if nothing fits."""
    norm = norm_of(module, function)
    norms = Norms(module)
    device = None if norm is None else norms._device(norm)
    if norm is None or device is None or not has_kernels_for(device):
        return None
    verdict = probe(norm, norms._dtypes(norm), device)
    return None if verdict.form is None else _forward(norm, verdict)


def _kind(norm: Norm, own: Dtypes, device: torch.device) -> Hashable:
    """Modules of one kind give equal results for equal inputs and weights."""
    settings = []
    for name, value in sorted(vars(norm.module).items()):
        if name in nn.Module().__dict__ or name.startswith("_hf") or name == _swap.BEHIND_A_HOOK:
            continue
        simple = isinstance(value, int | float | str | bool | tuple | torch.Size | type(None))
        settings.append((name, value if simple and _is_hashable(value) else id(value)))
    return type(norm.module), norm.function, norm.dim, norm.spatial, own, device, tuple(settings)


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _forward(norm: Norm, verdict: Verdict) -> Any:
    """With the operator where that was seen to fit, else the module's own."""
    assert verdict.form is not None
    original, weight, dtypes = norm.function, norm.weight, verdict.dtypes
    dims = None if norm.spatial is None else 2 + norm.spatial
    run = verdict.form.forward(weight, verdict.eps)
    may_be_ready = verdict.form.op == "rms_norm"
    operands = 2 if verdict.form.has_gate else 1

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != operands or not isinstance(args[-1], Tensor):
            return original(self, *args, **kwargs)
        x = args[0]
        w = x if weight is None else getattr(self, weight)
        if (x.dtype, w.dtype) not in dtypes or (
            torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
        ):
            return original(self, *args)
        if dims is not None and x.dim() != dims:
            return original(self, *args)
        if may_be_ready and READY in vars(self) and (ready := take_ready(self, x)) is not None:
            return ready
        return run(self, *args)

    return forward
