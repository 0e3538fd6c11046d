"""When the Metal kernels are compiled, and ahead of the first call.

A pipeline is a kernel made for one operator, dtype and set of options. The first call that needs
one makes it, in milliseconds where the extension was built with Xcode's Metal compiler, else from
source. CPU kernels are compiled when the extension is built.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product, zip_longest
from operator import index
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from torch_mlxnorm import functional
from torch_mlxnorm._roles import EXTRAS, INPUTS, OPS
from torch_mlxnorm.functional import (
    Activation,
    CastingMode,
    ChannelForm,
    GateActivation,
    Modulation,
    RopeRounding,
)

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Operator = str | Callable[..., Any]
ScaleKind = Literal["one", "many"]


class CompiledKernel(NamedTuple):
    """How a pipeline came about."""

    name: str
    """Of the kernel: operator, kind, words per thread, dtype, access."""
    origin: Literal["metallib", "source"]
    """Compiled when the extension was built, or at run time."""
    seconds: float
    """Until it was ready to be dispatched."""


def compiled_kernels(device: torch.device | str | None = None) -> list[CompiledKernel]:
    """The pipelines that this process has made so far, in the order in which they were ready.

    A kernel appears once for each set of options that it was asked for with.

    Args:
        device: ``None`` means MPS where it is available. Others compile nothing: an empty list.
    """
    columns = torch.ops.mlxnorm._compiled_kernels(_like(torch.float32, device))
    return [CompiledKernel(*row) for row in zip(*columns, strict=True)]


def warm_up(
    ops: Operator | Iterable[Operator] | None,
    dtypes: torch.dtype | Iterable[torch.dtype],
    dims: int | Iterable[int],
    *,
    operand_dtypes: torch.dtype | Mapping[str, torch.dtype] | None = None,
    missing: Iterable[str] | None = None,
    extras: Iterable[str] = (),
    scale: ScaleKind | None = None,
    activation: Activation | None = None,
    modulation: Modulation = "steps",
    norm_before_gate: bool = False,
    interleaved: bool = False,
    full_tables: bool = False,
    across_heads: bool = False,
    rope_rounding: RopeRounding = "once",
    gate_activation: GateActivation = "none",
    form: ChannelForm = "normalize",
    silu: bool = False,
    casting_mode: CastingMode = "gemma",
    round_intermediates: bool = False,
    unaligned: bool = False,
    device: torch.device | str | None = None,
) -> None:
    """Makes the pipelines for calls of every op in ``ops`` with every dtype and dim, side by side,
    so that such calls, with any number of rows, compile nothing::

        torch_mlxnorm.warm_up(["rms_norm", "add_rms_norm"], torch.bfloat16, [128, 2816],
                              casting_mode="llama", round_intermediates=True)

    Call it again for calls with other options. :class:`RmsNormRecord` uses the pipelines of
    ``rms_norm``. Nothing runs on the device, and what is there already is not made again.

    Args:
        ops: operators by name or as functions of this package; ``None`` means all.
        dtypes: of the inputs: float32, float16 or bfloat16.
        dims: sizes of the last dimension, or of its groups (``group_size``), at least 1; of
            :func:`channel_rms_norm` numbers of channels.
        operand_dtypes: of operands (weights, biases, scales, angles, …): one for all, or by the
            name of the argument. ``None``, or a name left out, means the inputs' dtype.
            ``residual`` may be float32, by its name.
        missing: names of optional arguments (``weight``, ``bias``, ``scale``, …) that the calls
            leave out, in the ops that have them. ``None`` means any of them, in every combination.
        extras: names of ``bias``, ``gate``, ``next_scale`` and ``next_shift``, keyword arguments
            that calls have only if they are named here.
        scale: whether ``scale``, ``shift``, ``layer_scalar`` and extras have ``"one"`` element or
            ``"many"``; ``None`` means either, each for itself.
        activation: of :func:`rms_norm`, :func:`rms_norm_mul` and :func:`gated_rms_norm`; ``None``
            means the default of each.
        modulation: of :func:`rms_norm_modulate` and of residual ops with ``next_scale``.
        norm_before_gate: of :func:`gated_rms_norm`.
        interleaved, full_tables, across_heads, rope_rounding: of :func:`rms_norm_rope`. Tables that
            are wider than half a row are full, and all heads of a token one row.
        gate_activation: of residual ops with ``gate``.
        form, silu: of :func:`channel_rms_norm`, contiguous and channels-last.
        casting_mode, round_intermediates: see :func:`rms_norm`, for the ops that have them.
        unaligned: also for tensors in which some row does not start on a 16-byte boundary, as in a
            slice ``x[:, 1:]``, or of which a part is rotated whose halves are no multiples of 16
            bytes.
        device: ``None`` means MPS where it is available. On others there is nothing to compile: the
            arguments are checked.

    Raises:
        ValueError: an unknown operator, argument name or option; a dim that is out of range.
        TypeError: an unsupported dtype.
        RuntimeError: Metal's compiler failed.
    """
    names = tuple(OPS) if ops is None else tuple(dict.fromkeys(map(_name, _several(ops, _is_op))))
    dtypes = _several(dtypes, lambda d: isinstance(d, torch.dtype))
    dims = tuple(map(index, _several(dims, lambda d: hasattr(d, "__index__"))))
    wanted = frozenset(_several(extras, _is_name))
    left_out = None if missing is None else frozenset(_several(missing, _is_name))
    if operand_dtypes is None or isinstance(operand_dtypes, torch.dtype):
        default, by_name = operand_dtypes, {}
    else:
        default, by_name = None, dict(operand_dtypes)

    calls = {name: _Arguments(name) for name in names}
    _check_dtypes("dtypes", dtypes)
    _check_dtypes("operand_dtypes", by_name.values() if default is None else [default])
    named = [[*call.operands, *call.residuals] for call in calls.values()]
    _check_names("operand_dtypes", by_name, named)
    if by_name.get("residual", torch.float32) != torch.float32:
        raise TypeError("mlxnorm::warm_up: operand_dtypes: residual may be float32 only")
    _check_names("missing", left_out or (), [call.optional for call in calls.values()])
    _check_names("extras", wanted, [call.extras for call in calls.values()])
    if any(dim < 1 for dim in dims):
        raise ValueError(f"mlxnorm::warm_up: dims must be at least 1, got {min(dims)}")
    if scale not in (None, *get_args(ScaleKind)):
        raise ValueError(f'mlxnorm::warm_up: scale must be "one", "many" or None, got {scale!r}')

    choices = {
        "modulation": modulation,
        "norm_before_gate": str(bool(norm_before_gate)),
        "interleaved": str(bool(interleaved)),
        "full_tables": str(bool(full_tables)),
        "across_heads": str(bool(across_heads)),
        "rope_rounding": rope_rounding,
        "gate_activation": gate_activation,
        "form": form,
        "silu": str(bool(silu)),
        "casting_mode": casting_mode,
        "round_intermediates": str(bool(round_intermediates)),
    }
    if activation is not None:
        choices["activation"] = activation

    def compile_variant(
        name: str, dtype: torch.dtype, dim: int, present: list[str], ones: list[str]
    ) -> None:
        call = calls[name]
        tensors: dict[str, Tensor | None] = dict.fromkeys(call.tensors)
        for tensor in present:
            fallback = default or dtype if tensor in call.operands else dtype
            tensors[tensor] = _like(by_name.get(tensor, fallback), device)
        torch.ops.mlxnorm._warm_up(
            _like(dtype, device),
            name,
            dim,
            list(tensors.values()),
            [tensor in ones for tensor in tensors],
            unaligned,
            choices,
        )

    # Variants of one kernel wait for the same library, so other kernels come between them.
    variants = [
        [(name, dtype, dim, *variant) for variant in calls[name].variants(left_out, wanted, scale)]
        for name, dtype, dim in product(names, dtypes, dims)
    ]
    work = [variant for turn in zip_longest(*variants) for variant in turn if variant is not None]
    with concurrent.futures.ThreadPoolExecutor(
        os.cpu_count()
    ) as pool:  # the compiler runs without Python's lock
        for _ in pool.map(lambda variant: compile_variant(*variant), work):
            pass


class _Arguments:
    """Of an operator."""

    def __init__(self, name: str) -> None:
        self.tensors = OPS[name]
        self.operands = [n for n, role in self.tensors.items() if role not in (*INPUTS, "residual")]
        self.residuals = [n for n, role in self.tensors.items() if role == "residual"]
        self.scales = [n for n, role in self.tensors.items() if role == "scale"]
        arguments = getattr(torch.ops.mlxnorm, name).default._schema.arguments
        self.optional = [a.name for a in arguments if str(a.type) == "Optional[Tensor]"]
        self.extras = EXTRAS[name]

    def variants(
        self, missing: frozenset[str] | None, extras: frozenset[str], scale: ScaleKind | None
    ) -> Iterator[tuple[list[str], list[str]]]:
        """The tensors that are there, and those that have one element."""
        kinds = get_args(ScaleKind) if scale is None else (scale,)
        for left_out in product(*(self._choices(name, missing, extras) for name in self.tensors)):
            pairs = zip(self.tensors, left_out, strict=True)
            present = [name for name, is_left_out in pairs if not is_left_out]
            scales = [name for name in self.scales if name in present]
            for chosen in product(kinds, repeat=len(scales)):
                pairs = zip(scales, chosen, strict=True)
                yield present, [name for name, kind in pairs if kind == "one"]

    def _choices(
        self, name: str, missing: frozenset[str] | None, extras: frozenset[str]
    ) -> tuple[bool, ...]:
        """Whether a tensor is left out."""
        if name not in self.optional:
            return (False,)
        if name in self.extras and name not in extras:
            return (True,)
        return (False, True) if missing is None else (name in missing,)


def _like(dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """A tensor that says where and of which dtype."""
    if device is None:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.empty(0, dtype=dtype, device=device)


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_op(value: Any) -> bool:
    return isinstance(value, str) or callable(value)


def _several(values: Any, is_one: Callable[[Any], bool]) -> tuple[Any, ...]:
    return (values,) if is_one(values) else tuple(values)


def _name(op: Operator) -> str:
    name = op if isinstance(op, str) else getattr(op, "__name__", "")
    if name not in OPS or op not in (name, getattr(functional, name)):
        raise ValueError(f"mlxnorm::warm_up: ops must be among {', '.join(OPS)}, got {op!r}")
    return name


def _check_dtypes(argument: str, dtypes: Iterable[torch.dtype]) -> None:
    for dtype in dtypes:
        if dtype not in _DTYPES:
            raise TypeError(
                f"mlxnorm::warm_up: {argument} must be float32, float16 or bfloat16, "
                f"got {str(dtype).removeprefix('torch.')}"
            )


def _check_names(argument: str, names: Iterable[str], known: Iterable[Iterable[str]]) -> None:
    everything = sorted({name for some in known for name in some})
    for name in names:
        if name not in everything:
            raise ValueError(
                f"mlxnorm::warm_up: {argument} must name arguments of the ops "
                f"({', '.join(everything) or 'there are none'}), got {name!r}"
            )
