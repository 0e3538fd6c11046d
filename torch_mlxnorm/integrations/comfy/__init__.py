"""comfy-kitchen, ComfyUI's kernels: a backend that takes its norms to the operators::

    from torch_mlxnorm.integrations.comfy import register

    print(register())

`comfyui/` of the repository is a folder for ComfyUI's `custom_nodes` that does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from ._backend import TENSORS, Backend, devices_with_kernels
from ._report import Entry, Report
from ._rms_norm import reroute_rms_norm, restore_rms_norm

__all__ = ["Entry", "Report", "register", "reroute_rms_norm", "restore_rms_norm", "unregister"]

NAME = "mlxnorm"
OLDEST, BELOW = (0, 2, 25), (0, 3)


def register() -> Report:
    """Registers the operators as comfy-kitchen's backend ``"mlxnorm"``, just before ``"eager"``.

    Functions, for those that the installed comfy-kitchen has: ``rms_rope``, ``rms_rope1``,
    ``rms_rope_split_half``, ``rms_rope_split_half1``, the same in place (``rms_rope_``, ...),
    ``rms_adaln`` and ``rms_gated_residual``. Each is run on random input of all combinations of
    dtypes on the CPU, beside what the operators give; where at least 99.9 % of the elements are
    those of the eager backend, calls of these dtypes go to the operator. All others are declined
    by the constraints and get to the next backend, as are calls that the operators do not fit:
    tensors that require a gradient where gradients are enabled, autocast, subclasses of tensors,
    operands that broadcast otherwise, last dimensions that are strided.

    Which dimension of q and k is that of heads is never asked: ``freqs_cis`` broadcasts to either.

    A second call does it anew.

    Returns:
        What was registered for which dtypes, and what not and why. ``restore()`` undoes it.

    Raises:
        ImportError: comfy-kitchen is missing, or older or newer than what is known to have this
            registry (0.2.25 up to 0.3).

    See also :func:`unregister`, :func:`reroute_rms_norm` and docs/image-models.md.
    """
    version = _require()
    from comfy_kitchen._rope_utils import check_rope_inplace
    from comfy_kitchen.constraints import (
        ExactDims,
        FunctionConstraints,
        ParamConstraint,
        ValidationResult,
    )
    from comfy_kitchen.registry import registry

    from ._examine import examine, not_covered

    backend = Backend(check_rope_inplace)
    theirs = registry.list_backends()["eager"]["capabilities"]
    entries = [
        entry
        for name in TENSORS
        if name in theirs
        for entry in examine(backend, name, _eager(name))
    ]
    devices = devices_with_kernels()
    dims = {"freqs_cis": 6, "x": 4, "q": 4, "k": 4, "scale": 1, "q_scale": 1, "k_scale": 1}
    capabilities = {}
    for name in dict.fromkeys(name for name, _ in backend.options):
        each = [dtypes for function, dtypes in backend.options if function == name]
        columns = zip(*each, strict=True)
        dtypes = dict(zip(TENSORS[name], map(frozenset, columns), strict=True))
        ropes = "freqs_cis" in dtypes
        if "q" in dtypes:
            dtypes |= {"k": dtypes["q"], "k_scale": dtypes["q_scale"]}
        params = {
            key: ParamConstraint(allowed, shape_rules=(ExactDims(dims[key]),) if ropes else ())
            for key, allowed in dtypes.items()
        }
        rule = _rule(backend, name, ValidationResult)
        capabilities[name] = FunctionConstraints(params, frozenset(devices), call_rules=(rule,))
    registry.register(NAME, backend, capabilities)
    registry.enable(NAME)
    others = [name for name in registry._priority if name != NAME]
    at = others.index("eager") if "eager" in others else len(others)
    registry.set_priority([*others[:at], NAME, *others[at:]])
    entries += not_covered(theirs)
    return Report(f"comfy-kitchen {version}", entries, devices, unregister)


def unregister() -> None:
    """Undoes :func:`register`; nothing where it was not called."""
    try:
        from comfy_kitchen.registry import registry
    except ImportError:
        return
    if NAME in registry._priority:
        registry.set_priority([name for name in registry._priority if name != NAME])
    if NAME in registry.list_backends():
        registry.register(NAME, None, {})  # there is nothing that takes a backend out
        registry.disable(NAME)


def _eager(name: str) -> Callable[..., Any]:
    from comfy_kitchen.backends import eager

    return getattr(eager, name)


def _rule(backend: Backend, name: str, result: Any) -> Callable[[Mapping[str, Any]], Any]:
    def rule(arguments: Mapping[str, Any]) -> Any:
        refusal = backend.refusal(name, arguments)
        return result.ok() if refusal is None else result.fail(*refusal)

    return rule


def _require() -> str:
    wanted = "comfy-kitchen>={},<{}".format(*(".".join(map(str, v)) for v in (OLDEST, BELOW)))
    try:
        version = metadata.version("comfy-kitchen")
    except metadata.PackageNotFoundError as error:
        raise ImportError(f'comfy-kitchen is not installed: pip install "{wanted}"') from error
    if not OLDEST <= tuple(map(int, re.findall(r"\d+", version)[:3])) < BELOW:
        raise ImportError(
            f'comfy-kitchen {version} is not one that torch_mlxnorm knows: pip install "{wanted}"'
        )
    return version
