"""Another forward for a module: its class, weights and hooks stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from torch import nn

# Where accelerate's hooks keep the forward that they call.
BEHIND_A_HOOK = "_old_forward"
OURS = "_mlxnorm_"  # attributes of modules
MARK = "_mlxnorm_original"  # of functions


class Replaced(Exception):
    """The module's forward is neither its class's nor a method."""


def _place(module: nn.Module) -> str:
    return BEHIND_A_HOOK if BEHIND_A_HOOK in vars(module) else "forward"


def function_of(module: nn.Module) -> Callable[..., Any]:
    """The forward that runs in the end, as a function of the module."""
    forward = vars(module).get(_place(module))
    if forward is None:
        return type(module).forward
    if isinstance(forward, MethodType) and forward.__self__ is module:
        return forward.__func__
    raise Replaced("its forward has been replaced by what is not a method of it")


def is_swapped(module: nn.Module) -> bool:
    return any(
        hasattr(getattr(vars(module).get(place), "__func__", None), MARK)
        for place in ("forward", BEHIND_A_HOOK)
    )


def swap(module: nn.Module, forward: FunctionType) -> None:
    """`forward` is a function of the module. It may be that of several, and of their copies."""
    setattr(forward, MARK, function_of(module))
    setattr(module, _place(module), MethodType(forward, module))


def restore(module: nn.Module) -> None:
    """If it was swapped. A hook that came, or went, since then stays."""
    for name in [name for name in vars(module) if name.startswith(OURS)]:
        del vars(module)[name]
    for place in ("forward", BEHIND_A_HOOK):
        original = getattr(getattr(vars(module).get(place), "__func__", None), MARK, None)
        if original is None:
            continue
        if place == "forward" and original is type(module).forward:
            delattr(module, place)
        else:
            setattr(module, place, MethodType(original, module))


def swap_again(module: nn.Module, forward: FunctionType) -> None:
    """In the place of a forward that :func:`swap` has put there; both are undone together."""
    original = getattr(function_of(module), MARK)
    setattr(forward, MARK, original)
    setattr(module, _place(module), MethodType(forward, module))


def rebound(function: Any, name: str, value: object) -> FunctionType:
    """The function with another value for a global."""
    scope = dict(function.__globals__)
    scope[name] = value
    result = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    result.__kwdefaults__ = function.__kwdefaults__
    return result
