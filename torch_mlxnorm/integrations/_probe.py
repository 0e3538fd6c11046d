"""Which form a norm module has: found by running it.

The module is called with random input and weights, beside each form that it may have. Its class
does not matter, so a new release or a model's own code is found as well.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._forms import (
    KNOWN,
    Form,
    eps_of,
    forms_of_channel_norms,
    forms_of_gated_norms,
    forms_of_norms,
    groups_of,
)
from ._launches import Launches
from ._swap import Replaced, function_of

# Of 16-bit elements those that are equal: the order of a sum changes one in ten thousand.
LEAST_EQUAL = 0.999
# Beside 1, as x is large or small beside eps.
SCALES = (1.0, 1.0, 30.0, 1e-2, 1e-3)
NEAR_ZERO = 1e-9  # where a norm is divided by its eps
ELEMENTS = 1 << 16
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

Dtypes = tuple[torch.dtype, torch.dtype]  # of x and of the weight


@dataclass(frozen=True)
class Verdict:
    """`form` is None if none fits."""

    form: Form | None
    eps: float | None
    dtypes: frozenset[Dtypes]  # for which it fits
    equal: float
    launches: int
    reason: str = ""


@dataclass(frozen=True)
class Norm:
    """A module that may be one."""

    module: nn.Module
    function: Callable[..., Any]
    weight: str | None
    dim: int
    has_gate: bool
    spatial: int | None  # dimensions behind its channels, as its weight has; None: no such weight


def norm_of(module: nn.Module, function: Callable[..., Any] | None = None) -> Norm | None:
    """None if it cannot be one. `function` is its forward, if it is not what runs now."""
    parameters = [(name, p) for name, p in module._parameters.items() if p is not None]
    if any(True for _ in module.children()) or len(parameters) > 1:
        return None
    if type(module).__module__.startswith("torch.") and not isinstance(module, nn.RMSNorm):
        return None
    name, weight = parameters[0] if parameters else (None, None)
    if weight is None:
        # What has no weight is run only if it looks like a norm.
        if not any("eps" in attribute for attribute in vars(module)) and not is_called_norm(module):
            return None
    elif weight.numel() != weight.shape[:1].numel() or not weight.is_floating_point():
        return None
    try:
        function = function or function_of(module)
        signature = inspect.signature(function)
    except (Replaced, ValueError):
        return None
    needed = list(signature.parameters.values())[1:]
    if not needed or needed[0].kind in (needed[0].KEYWORD_ONLY, needed[0].VAR_KEYWORD):
        return None
    others = [p for p in needed[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    has_gate = any("gate" in p.name for p in needed[1:2])
    if len(others) > int(has_gate):
        return None
    dim = weight.numel() if weight is not None else _dim_of(module)
    spatial = weight.dim() - 1 if weight is not None and weight.dim() > 1 else None
    return Norm(module, function, name, dim, has_gate, spatial) if dim > 1 else None


def is_called_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _dim_of(module: nn.Module) -> int:
    """Of one without a weight: any will do, unless it was told one."""
    sizes = [value for name, value in vars(module).items() if name.endswith(("dim", "size"))]
    return next((size for size in sizes if isinstance(size, int) and size > 1), 256)


def _stand_in(norm: Norm, weight: Tensor | None, device: torch.device) -> nn.Module:
    """The module with another weight and without hooks. The model's own tensors stay."""
    stand_in = copy.copy(norm.module)
    state = dict(vars(norm.module))
    state["_parameters"] = dict(norm.module._parameters)
    if norm.weight is not None and weight is not None:
        state["_parameters"][norm.weight] = nn.Parameter(weight, requires_grad=False)
    buffers = norm.module._buffers.items()
    state["_buffers"] = {name: b if b is None else b.to(device) for name, b in buffers}
    stand_in.__dict__ = state
    return stand_in


@dataclass(frozen=True)
class _Inputs:
    """Of a kind of norm, in float32."""

    x: Tensor
    weight: Tensor
    gate: Tensor | None = None

    def arguments(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(t.to(dtype) for t in (self.x, self.gate) if t is not None)


def _inputs(norm: Norm, over_channels: bool, device: torch.device) -> _Inputs:
    """Of one dimension alone it is told whether that is normalized."""
    generator = torch.Generator().manual_seed(0)
    scales = (*SCALES, NEAR_ZERO) if over_channels else SCALES
    rows = max(len(scales), ELEMENTS // norm.dim // len(scales) * len(scales))
    shape, weight = (rows, 1, norm.dim), (norm.dim,)
    if norm.has_gate:
        shape = (rows, norm.dim)
    elif over_channels:
        ones = (1,) * (2 if norm.spatial is None else norm.spatial)
        shape, weight = (len(scales), norm.dim, *ones[1:], rows // len(scales)), (norm.dim, *ones)
    x = torch.randn(shape, generator=generator)
    by_row = torch.tensor(scales).repeat(rows // len(scales) + 1)[: len(x)]
    x *= by_row.view(-1, *[1] * (x.dim() - 1))
    gate = torch.randn(shape, generator=generator).to(device) if norm.has_gate else None
    return _Inputs(x.to(device), torch.randn(weight, generator=generator).to(device), gate)


def share_equal(ours: Tensor, theirs: object, terms: Tensor | None = None) -> float:
    """Of 16-bit elements; in float32 of those within four roundings, of the result or of the
    ``terms`` whose sum it is."""
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return 0.0
    if ours.dtype == torch.float32:  # sums have another order: within four roundings
        bound = (theirs if terms is None else terms).abs() * 2**-21
        equal = (ours - theirs).abs() <= bound
    else:
        equal = ours == theirs
    return equal.float().mean().item()


@torch.no_grad()
def probe(norm: Norm, own: Dtypes, device: torch.device) -> Verdict:
    """The form that gives the module's results for `own` dtypes, and for most others."""
    verdict = Verdict(None, None, frozenset(), 0.0, 0)
    for over_channels in (False, True):
        # A weight says which dimension it is of.
        if norm.weight is not None and over_channels != (norm.spatial is not None):
            continue
        if norm.has_gate and over_channels:
            continue
        found = _probe(norm, own, _inputs(norm, over_channels, device), over_channels)
        if found.form is not None:
            return found
        if found.equal >= verdict.equal:
            verdict = found
    return verdict


def _probe(norm: Norm, own: Dtypes, inputs: _Inputs, over_channels: bool) -> Verdict:
    device = inputs.x.device
    combinations = list(dict.fromkeys([own, *((dtype, dtype) for dtype in DTYPES)]))
    theirs: dict[Dtypes, Tensor] = {}
    launches = 0
    for dtypes in combinations:
        stand_in = _stand_in(norm, inputs.weight.to(dtypes[1]), device)
        arguments = inputs.arguments(dtypes[0])
        try:
            with Launches() as counted:
                result = norm.function(stand_in, *arguments)
        except Exception as error:
            if dtypes == own:
                return Verdict(None, None, frozenset(), 0.0, 0, f"it does not run: {error}")
            continue
        theirs[dtypes] = result
        launches = launches or counted.total
    best = Verdict(None, None, frozenset(), 0.0, launches)
    for form, eps in _candidates(norm, over_channels):
        forward = form.forward(norm.weight, eps)
        fits, equal = set(), 0.0
        for dtypes, expected in theirs.items():
            stand_in = _stand_in(norm, inputs.weight.to(dtypes[1]), device)
            try:
                ours = forward(stand_in, *inputs.arguments(dtypes[0]))
            except (RuntimeError, TypeError, ValueError):  # dtypes that the operators do not have
                share = 0.0
            else:
                share = share_equal(ours, expected)
            if dtypes == own:
                equal = share
            if share >= LEAST_EQUAL:
                fits.add(dtypes)
            elif dtypes == own:
                break
        if own not in fits:
            if best.form is None and equal > best.equal:
                best = Verdict(None, None, frozenset(), equal, launches)
        elif best.form is None or len(fits) > len(best.dtypes):
            best = Verdict(form, eps, frozenset(fits), equal, launches)
        if len(fits) == len(combinations):
            break
    if best.form is None:
        reason = _why(theirs.get(own), own, best.equal)
        return Verdict(None, None, frozenset(), best.equal, launches, reason)
    return best


def _candidates(norm: Norm, over_channels: bool) -> Iterator[tuple[Form, float]]:
    if norm.has_gate:
        forms = list(forms_of_gated_norms(groups_of(norm.module, norm.dim)))
    elif over_channels:
        forms = list(forms_of_channel_norms(norm.weight is not None))
    else:
        forms = list(forms_of_norms(norm.weight is not None))
    known = KNOWN.get(type(norm.module).__name__)
    forms.sort(key=lambda form: form != known)
    # By numbers first: the likeliest of all forms before less likely numbers.
    tried = [(form, eps_of(norm.module, form)) for form in forms]
    for place in range(max(len(numbers) for _, numbers in tried)):
        for form, numbers in tried:
            if place < len(numbers):
                yield form, numbers[place]


def _why(result: object, own: Dtypes, equal: float) -> str:
    if own[0] not in DTYPES:
        return f"no operator takes {_name(own[0])}"
    if isinstance(result, Tensor) and result.dtype != own[0]:
        return f"of {_name(own[0])} input it gives {_name(result.dtype)}"
    return f"no operator gives its results ({equal:.1%} of elements by the best)"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
