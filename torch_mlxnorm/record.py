"""Prebaked dispatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_mlxnorm import _C
from torch_mlxnorm._roles import OPS
from torch_mlxnorm.functional import CastingMode

Outs = Tensor | tuple[Tensor, ...]


class _Example(NamedTuple):
    """What is baked of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Example:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def without_memory(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")

    def __repr__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


class Record(_C.Record):
    """What :func:`prebake` returns: an operator with everything but the tensors fixed.

    ``record(*tensors, out=...)`` takes the tensors in the order of the operator's function and
    ``out``, a tensor or the tuple of them; it returns nothing.
    """

    def __init__(
        self,
        op: str,
        examples: Mapping[str, _Example],
        options: Mapping[str, Any],
        outs: Mapping[str, _Example] | None,
        device: torch.device,
    ) -> None:
        tensors = {
            name: examples[name].without_memory() if name in examples else None for name in OPS[op]
        }
        if outs is None:
            results = getattr(torch.ops.mlxnorm, op).default(**tensors, **options)
            results = (results,) if isinstance(results, Tensor) else results
            outs = dict(zip(_results(op), map(_Example.of, results), strict=True))
        written = {name: example.without_memory() for name, example in outs.items()}
        _C.bake(self, op, **tensors, **options, **written, device=device)
        self._baked = (op, dict(examples), dict(options), dict(outs), device)

    def bind(self, *tensors: Tensor | str | None, out: Any) -> Bound:
        """A call for :func:`prebake_chain`: tensors stay bound, a string names one that calls of
        the chain bring."""
        outs = tuple(out) if isinstance(out, (tuple, list)) else (out,)
        count = len(_results(self._baked[0]))
        if len(outs) != count:
            raise TypeError(
                f"mlxnorm::{self._baked[0]} record: out must be {count} tensors, got {len(outs)}"
            )
        return Bound(self, tensors, outs)

    def __repr__(self) -> str:
        if "_baked" not in vars(self):
            return f"{type(self).__name__}()"
        op, examples, options, outs, device = self._baked
        shown = {**examples, **outs, **options, "device": str(device)}
        arguments = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({op}, {arguments})"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name != "_baked"}
        return _rebaked, (type(self), self._baked), state


def _rebaked(kind: type[Record], baked: tuple[Any, ...]) -> Record:
    """Of what pickle and copy know of a record."""
    record = kind.__new__(kind)
    Record.__init__(record, *baked)
    return record


class Bound(NamedTuple):
    """What :meth:`Record.bind` returns."""

    record: Record
    tensors: tuple[Tensor | str | None, ...]
    outs: tuple[Tensor | str, ...]


class Chain(_C.Chain):
    """What :func:`prebake_chain` returns. ``names`` are those of the tensors that a call takes, in
    their order."""

    def __init__(self, calls: Sequence[Bound]) -> None:
        if not calls:
            raise ValueError("mlxnorm::prebake_chain: calls must be at least one, got none")
        self._calls = tuple(calls)
        given = [t for call in self._calls for t in (*call.tensors, *call.outs)]
        self.names = tuple(dict.fromkeys(name for name in given if isinstance(name, str)))
        slots = {name: slot for slot, name in enumerate(self.names)}

        def placed(tensors: Sequence[Tensor | str | None]) -> tuple[Any, ...]:
            return tuple(slots[t] if isinstance(t, str) else t for t in tensors)

        for record, tensors, outs in self._calls:
            _C.add_to_chain(self, record, placed(tensors), placed(outs))

    def __repr__(self) -> str:
        ops = ", ".join(call.record._baked[0] for call in self._calls)
        return f"{type(self).__name__}({', '.join(self.names)}: {ops})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._calls,)


def prebake(
    op: str | Callable[..., Any],
    *examples: Tensor | None,
    out: Outs | None = None,
    **options: Any,
) -> Record:
    """An operator with everything but the tensors fixed::

        record = prebake("add_rms_norm", x, residual, weight, eps=1e-6)
        record(x, residual, weight, out=(y, residual))

    A call looks up no pipeline, chooses no kernel, computes no geometry and passes by PyTorch's
    dispatcher: for the decode loop of an inference engine, which runs the same norms for every
    token. The results are those of the operator to the bit.

    Args:
        op: name of an operator, or its function: ``torch_mlxnorm.add_rms_norm``.
        examples: tensors like those of the calls to come, in the order of the function (tensors
            that it takes by keyword follow), ``None`` for those that calls leave out; at the end
            they may be left away. Of each the shape, strides, dtype and device count, and not the
            values: none is kept.
        out: like what calls write to, a tensor or a tuple of them; ``None`` means as the operator
            makes its results.
        options: of the operator: ``eps``, ``casting_mode`` and the like.

    ``record(*tensors, out=...)`` writes to ``out`` and returns nothing. Storage offsets may be any.
    Leading dimensions may be other ones if rows lie as they were baked: ``[1, 1, dim]`` for
    ``[1, dim]``. Where the operator's ``out`` may be an input, so may a record's that lies alike.
    Eager mode only: ``torch.compile`` breaks its graph there; use the function.

    Copies and pickles are baked again.

    Raises:
        ValueError: there is no such operator; an option is out of range.
        TypeError: no or too many examples; what is not a tensor; at a call another dtype than was
            baked, or too many tensors.
        NotImplementedError: there are no kernels for the device; a tensor with a tangent.
        RuntimeError: examples that the operator refuses, or would copy because their rows cannot
            be read where they are. At a call: another shape, device or strides, a tensor that is
            missing or was not baked, a subclass or a tensor whose values are pending, an ``out``
            that overlaps, a gradient that would be lost.

    Source: beyond ``build_rms_norm_decode_record`` of mlx-native 0.9.0, ``rms_norm.rs``, which is
    :class:`RmsNormRecord`.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in OPS:
        raise ValueError(f"mlxnorm::prebake: op must be among {', '.join(OPS)}, got {name!r}")
    tensors = list(OPS[name])
    if not 1 <= len(examples) <= len(tensors):
        raise TypeError(
            f"mlxnorm::prebake: {name} takes 1 to {len(tensors)} tensors ({', '.join(tensors)}), "
            f"got {len(examples)}"
        )
    given = dict(zip(tensors, examples, strict=False))
    for tensor in set(tensors) & set(options):
        raise TypeError(f"mlxnorm::prebake: {tensor} must be among the tensors, got a keyword")
    outs = None
    if out is not None:
        results = _results(name)
        written = (out,) if isinstance(out, Tensor) else tuple(out)
        if len(written) != len(results):
            raise TypeError(
                f"mlxnorm::prebake: out must be {len(results)} tensors ({', '.join(results)}), "
                f"got {len(written)}"
            )
        outs = dict(zip(results, written, strict=True))
    device = _device_of({**given, **(outs or {})})
    return Record(
        name,
        {key: _Example.of(t) for key, t in given.items() if t is not None},
        options,
        None if outs is None else {key: _Example.of(t) for key, t in outs.items()},
        device,
    )


def prebake_chain(*calls: Bound) -> Chain:
    """Records that follow each other, called as one::

        chain = prebake_chain(
            add.bind("x", "residual", weight, out=("y", "residual")),
            mul.bind("y", None, scale, out="z"),
        )
        chain.names                 # ("x", "residual", "y", "z")
        chain(x, residual, y, z)

    Weights are bound and stay; a string names a tensor that each call brings, in the order in which
    the names first appear. Everything is checked before anything runs, as each record checks it,
    with one entry into C++ and, on MPS, one block on the stream's queue. A call returns nothing.

    Args:
        calls: what :meth:`Record.bind` returned, of one device, in the order in which they run.

    Raises:
        ValueError: no calls, or records of several devices.
        TypeError: a call takes other than a tensor for each name.
        Otherwise as calls of the records.

    Source: beyond mlx-native 0.9.0.
    """
    return Chain(calls)


class RmsNormRecord(Record):
    """:func:`prebake` of :func:`torch_mlxnorm.rms_norm`, by sizes in place of examples::

        record = RmsNormRecord(torch.bfloat16, 1, 2816, eps=1e-6, device="mps")
        record(x, weight, out)    # out = N(x, weight)

    Args:
        dtype: of x and out: float32, float16 or bfloat16.
        rows: in x, all leading dimensions together; at least 1.
        dim: size of the last dimension; at least 1.
        eps, weight_offset, casting_mode: see :func:`torch_mlxnorm.rms_norm`.
        has_weight: whether calls bring a weight.
        weight_dtype: of the weight: float32, float16 or bfloat16; ``None`` means ``dtype``.
        device: of all tensors; ``None`` means ``torch.get_default_device()``.

    Calls take ``x`` and ``out``, contiguous, and ``weight``, ``[dim]`` or ``None``; see
    :func:`prebake`.

    Raises:
        ValueError: ``rows``, ``dim`` or ``casting_mode`` is out of range.
        TypeError: a dtype is not one of the above; ``rows`` or ``dim`` is no integer.
        Otherwise as :func:`prebake`.

    Source: ported from ``build_rms_norm_decode_record`` of mlx-native 0.9.0, ``rms_norm.rs``.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        rows: int,
        dim: int,
        *,
        eps: float | None = 1e-6,
        has_weight: bool = True,
        weight_dtype: torch.dtype | None = None,
        weight_offset: float = 0.0,
        casting_mode: CastingMode = "gemma",
        device: torch.device | str | None = None,
    ) -> None:
        rows, dim = _size("rows", rows), _size("dim", dim)
        examples = {"x": _Example((rows, dim), (dim, 1), dtype)}
        if has_weight:
            examples["weight"] = _Example((dim,), (1,), weight_dtype or dtype)
        options = {"eps": eps, "weight_offset": weight_offset, "casting_mode": casting_mode}
        where = torch.empty(0, device=device).device  # with its index
        super().__init__("rms_norm", examples, options, None, where)

    def __call__(self, x: Tensor, weight: Tensor | None, out: Tensor) -> None:
        super().__call__(x, weight, out=out)

    # As torch.compiler.disable(reason=...), without its wrapper: what fullgraph=True says.
    __call__._torchdynamo_disable = True  # type: ignore[attr-defined]
    __call__._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
        "RmsNormRecord is for eager mode; use torch_mlxnorm.rms_norm under torch.compile"
    )


def _results(op: str) -> list[str]:
    arguments = getattr(torch.ops.mlxnorm, op).out._schema.arguments
    return [argument.name for argument in arguments if argument.is_out]


def _device_of(tensors: Mapping[str, Tensor | None]) -> torch.device:
    """Of all of them."""
    first, device = None, None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"mlxnorm::prebake: {name} must be a tensor, got {type(tensor).__name__}"
            )
        if device is None:
            first, device = name, tensor.device
        elif tensor.device != device:
            raise RuntimeError(
                f"mlxnorm::prebake: {name} must be on {device} (as {first}), got {tensor.device}"
            )
    if device is None:
        raise TypeError("mlxnorm::prebake: at least one tensor must be given, got None alone")
    return device


def _size(name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"RmsNormRecord: {name} must be an int, got {type(value).__name__}")
    size = index(value)
    if not 1 <= size < 1 << 48:
        raise ValueError(f"RmsNormRecord: {name} must be at least 1 and below 2^48, got {size}")
    return size
