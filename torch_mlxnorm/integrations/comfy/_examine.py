"""Which operator and options give the bits of a function: found by running both.

comfy-kitchen's eager backend has changed its roundings from release to release, so they are
measured in the one that is installed.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from torch_mlxnorm.integrations._probe import DTYPES, LEAST_EQUAL, share_equal

from ._backend import TENSORS, Backend, Dtypes
from ._report import Entry

Options = dict[str, Any]
Function = Callable[..., Any]


def _op_of(name: str) -> tuple[str, list[Options]]:
    """The operator and its options, the likeliest first."""
    rounded: Options = {"round_intermediates": True}
    if name == "rms_adaln":
        ways = ("steps", "addcmul", "once")
        return "rms_norm_modulate", [{"modulation": way, **rounded} for way in ways]
    if name == "rms_gated_residual":
        return "rms_norm_add", [rounded]
    op = "qk_norm_rope" if "q" in TENSORS[name] else "rms_norm_rope"
    shape = {"interleaved": "split_half" not in name, "full_tables": True}
    return op, [
        {**shape, "rope_rounding": way, **rounded} for way in ("once", "addcmul", "products")
    ]


def _arguments(name: str) -> dict[str, Tensor]:
    """In float32, of the least shapes that show how a function rounds."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu")

    heads, tokens, dim = 4, 64, 128
    if name == "rms_adaln":
        x = random(heads, tokens, dim)
        return {"x": x, "scale": random(heads, 1, dim), "shift": random(heads, 1, dim)}
    if name == "rms_gated_residual":
        x, residual = random(heads, tokens, dim), random(heads, tokens, dim)
        weight, gate = random(dim), random(dim)
        return {"activation": x, "norm_weight": weight, "residual": residual, "gate": gate}
    freqs = random(1, 1, tokens, dim // 2, 2, 2)
    if "q" not in TENSORS[name]:
        return {"x": random(1, heads, tokens, dim), "freqs_cis": freqs, "scale": random(dim)}
    q, k = random(1, heads, tokens, dim), random(1, heads // 2, tokens, dim)
    q_scale, k_scale = random(dim), random(dim)
    return {"q": q, "k": k, "freqs_cis": freqs, "q_scale": q_scale, "k_scale": k_scale}


_FOLLOWS = {"k": "q", "k_scale": "q_scale"}  # in dtype


def _call(function: Function, arguments: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """In-place functions write to copies."""
    result = function(**{name: tensor.clone() for name, tensor in arguments.items()})
    return result if isinstance(result, tuple) else (result,)


class Comparison:
    """Of functions with the one whose bits are wanted."""

    def __init__(self, theirs: Function, arguments: dict[str, Tensor]) -> None:
        self.arguments = arguments
        self.expected = _call(theirs, arguments)
        # A float32 sum is as exact as its terms are.
        self.terms = _call(theirs, {name: tensor.abs() for name, tensor in arguments.items()})

    def share_equal(self, ours: Function) -> float:
        """In the result that has the least of them."""
        try:
            results = _call(ours, self.arguments)
        except (RuntimeError, TypeError):  # dtypes that the operators do not have
            return 0.0
        each = zip(results, self.expected, self.terms, strict=True)
        return min(share_equal(*tensors) for tensors in each)


@torch.no_grad()
def examine(backend: Backend, name: str, eager: Function) -> Iterator[Entry]:
    """Puts into the backend's options what fits, for all dtypes."""
    op, candidates = _op_of(name)
    parameters = TENSORS[name]
    originals = _arguments(name)
    fits: dict[int, dict[Dtypes, float]] = {}
    left: dict[Dtypes, float] = {}
    for dtypes in itertools.product(DTYPES, repeat=len(parameters)):
        dtype_of = dict(zip(parameters, dtypes, strict=True))
        arguments = {
            key: tensor.to(dtype_of[_FOLLOWS.get(key, key)]) for key, tensor in originals.items()
        }
        best = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's about weights of another dtype
            comparison = Comparison(eager, arguments)
        for number, options in enumerate(candidates):
            backend.options[name, dtypes] = options
            equal = comparison.share_equal(getattr(backend, name))
            if equal >= LEAST_EQUAL:
                fits.setdefault(number, {})[dtypes] = equal
                break
            best = max(best, equal)
        else:
            del backend.options[name, dtypes]
            left[dtypes] = best
    for number, shares in fits.items():
        text = _text(op, candidates[number])
        yield Entry(name, text, parameters, tuple(shares), min(shares.values()))
    if left:
        best = max(left.values())
        reason = f"no operator gives its results ({best:.1%} equal by the best)"
        if not best:
            reason = "its results have another dtype than an operator's"
        yield Entry(name, None, parameters, tuple(left), best, reason)


def _text(op: str, options: Options) -> str:
    return f"{op}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def not_covered(functions: Iterable[str]) -> Iterator[Entry]:
    """Those of comfy-kitchen that no operator computes."""
    for name in functions:
        if name not in TENSORS:
            yield Entry(name, reason=_why_not(name))


def _why_not(name: str) -> str:
    if name.startswith("apply_rope"):
        return "it rotates without a norm"
    if name == "adaln":
        return "it is a LayerNorm"
    if "int8_linear" in name:
        return "where it has a norm, a matrix of integers follows"
    return "it has no RMS norm"
