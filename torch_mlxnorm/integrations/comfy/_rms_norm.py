"""ComfyUI's RMS norm, which calls torch.nn.functional.rms_norm, by the operator instead.

It has two homes: the function `comfy.rmsnorm.rms_norm`, and the module `RMSNorm` of `comfy.ops`,
whose weight may be cast, and moved to the device, for a call.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
import warnings
from collections.abc import Callable
from inspect import signature
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_mlxnorm.functional import rms_norm
from torch_mlxnorm.integrations._probe import DTYPES, LEAST_EQUAL

from ._backend import devices_with_kernels, has_rows
from ._examine import Comparison, Function
from ._report import Entry, Report

FUNCTION, MODULE = "comfy.rmsnorm.rms_norm", "comfy.ops.disable_weight_init.RMSNorm"
METHODS = ("forward", "forward_comfy_cast_weights")
DIM = 128

_undo: list[Callable[[], None]] = []


class _LeftAlone(Exception):
    """Why."""


def reroute_rms_norm() -> Report:
    """Inside ComfyUI: its RMS norm calls :func:`torch_mlxnorm.rms_norm` from now on, in its
    function (also where a module has imported it by name) and in its module.

    Each is first run on the CPU beside what would replace it, with random input and weights of all
    dtypes, and is left alone unless at least 99.9 % of the elements are equal. Its own code runs
    for inputs that require a gradient where gradients are enabled, under autocast, in
    ``torch.jit``, for subclasses of tensors, and for other devices than mps and cpu.

    A second call does it anew.

    Returns:
        What was rerouted, and what not and why. ``restore()`` undoes it, as
        :func:`restore_rms_norm` does.
    """
    restore_rms_norm()
    devices = devices_with_kernels()
    entries = []
    for name, parameters, reroute in (
        (FUNCTION, ("x", "weight"), _reroute_function),
        (MODULE, ("input", "weight"), _reroute_module),
    ):
        try:
            equal = reroute(devices)
        except _LeftAlone as error:
            entries.append(Entry(name, reason=str(error)))
        else:
            dtypes = tuple(itertools.product(DTYPES, repeat=2))
            entries.append(Entry(name, "rms_norm()", parameters, dtypes, equal))
    return Report("ComfyUI", entries, devices, restore_rms_norm)


def restore_rms_norm() -> None:
    """Undoes :func:`reroute_rms_norm`; nothing where it was not called."""
    while _undo:
        _undo.pop()()


def _fits(x: object, shape: Any, devices: tuple[str, ...]) -> bool:
    """Whether the operator computes it, if the weight allows it."""
    return (
        type(x) is Tensor
        and x.dtype in DTYPES
        and x.device.type in devices
        and x.dim() > 0
        and x.shape[-1] > 0
        and tuple(shape or x.shape[-1:]) == tuple(x.shape[-1:])
        and has_rows(x)
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.jit.is_tracing()
    )


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
    """torch.nn.functional.rms_norm of what fits, with strides as that gives them."""
    if weight is not None and (
        type(weight) not in (Tensor, nn.Parameter)
        or weight.device != x.device
        or (torch.is_grad_enabled() and weight.requires_grad)
    ):
        return functional.rms_norm(x, x.shape[-1:], weight, eps)
    return rms_norm(x, weight, eps, out=None if x.is_contiguous() else torch.empty_like(x))


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _LeftAlone(f"there is no {name} here") from error


def _reroute_function(devices: tuple[str, ...]) -> float:
    home, management = _import("comfy.rmsnorm"), _import("comfy.model_management")
    original = getattr(home, "rms_norm", None)
    if original is None or list(signature(original).parameters) != ["x", "weight", "eps"]:
        raise _LeftAlone("it is not rms_norm(x, weight, eps)")

    @functools.wraps(original)
    def replacement(x: Any, weight: Any = None, eps: Any = 1e-6) -> Any:
        if not _fits(x, None if weight is None else weight.shape, devices):
            return original(x, weight, eps)
        if weight is not None:
            weight = management.cast_to(weight, dtype=x.dtype, device=x.device)
        return _rms_norm(x, weight, eps)

    equal = _least_equal(original, replacement)
    for name, module in list(sys.modules.items()):
        if name.startswith("comfy"):
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if value is original:
                    _replace(module, attribute, replacement)
    return equal


def _reroute_module(devices: tuple[str, ...]) -> float:
    ops = _import("comfy.ops")
    cls = getattr(getattr(ops, "disable_weight_init", None), "RMSNorm", None)
    if cls is None or not all(name in vars(cls) for name in METHODS):
        raise _LeftAlone(f"it has no {' and '.join(METHODS)}")
    if not hasattr(ops, "cast_bias_weight") or not hasattr(ops, "uncast_bias_weight"):
        raise _LeftAlone("comfy.ops has no cast_bias_weight and uncast_bias_weight")
    forward, casting_forward = (vars(cls)[name] for name in METHODS)

    @functools.wraps(forward)
    def new_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        casts = self.comfy_cast_weights or self.weight_function or self.bias_function
        if casts or kwargs or len(args) != 1 or not _fits(args[0], self.normalized_shape, devices):
            return forward(self, *args, **kwargs)
        if hasattr(ops, "run_every_op"):  # where a user's interruption is seen
            ops.run_every_op()
        return _rms_norm(args[0], self.weight, self.eps)

    @functools.wraps(casting_forward)
    def new_casting_forward(self: Any, input: Any) -> Any:
        if not _fits(input, self.normalized_shape, devices):
            return casting_forward(self, input)
        if self.weight is None:
            return _rms_norm(input, None, self.eps)
        weight, bias, stream = ops.cast_bias_weight(self, input, offloadable=True)
        try:
            return _rms_norm(input, weight, self.eps)
        finally:
            ops.uncast_bias_weight(self, weight, bias, stream)

    methods = dict(zip(METHODS, (new_forward, new_casting_forward), strict=True))
    trial = type(cls.__name__, (cls,), methods)

    def run(cls: type[nn.Module], casts: bool) -> Function:
        def norm(x: Tensor, weight: Tensor) -> Tensor:
            module = cls(DIM, eps=1e-6, device="cpu", dtype=weight.dtype)
            module.weight = nn.Parameter(weight, requires_grad=False)
            module.comfy_cast_weights = casts
            return module(x)

        return norm

    equal = min(_least_equal(run(cls, casts), run(trial, casts)) for casts in (False, True))
    for name, method in methods.items():
        _replace(cls, name, method)
    return equal


@torch.no_grad()
def _least_equal(theirs: Function, ours: Function) -> float:
    """Over all dtypes of x and weight."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, DIM, generator=generator, device="cpu")
    weight = torch.randn(DIM, generator=generator, device="cpu")
    shares = []
    for dtype, weight_dtype in itertools.product(DTYPES, repeat=2):
        arguments = {"x": x.to(dtype), "weight": weight.to(weight_dtype)}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's about weights of another dtype
                comparison = Comparison(theirs, arguments)
                shares.append(comparison.share_equal(ours))
        except Exception as error:
            raise _LeftAlone(f"it does not run: {error}") from error
    equal = min(shares)
    if equal < LEAST_EQUAL:
        raise _LeftAlone(f"the operator does not give its results ({equal:.1%} equal)")
    return equal


def _replace(owner: Any, name: str, value: Any) -> None:
    original = vars(owner)[name]
    setattr(owner, name, value)

    def undo() -> None:
        if vars(owner).get(name) is value:  # nobody has replaced it since
            setattr(owner, name, original)

    _undo.append(undo)
