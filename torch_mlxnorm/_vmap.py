"""torch.vmap: the batch becomes a leading dimension, so that one call serves all of it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from torch_mlxnorm._roles import (
    OPS,
    bound,
    has_channels,
    is_written,
    leading_dimensions,
    qualified,
    rows_of,
    tensor_arguments,
)

_unwrap = torch._C._functorch._unwrap_batched
_wrap = torch._C._functorch._add_batch_dim
_BATCHED = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)


def _with_batch(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    if dim is None:
        return tensor.unsqueeze(0).expand(batch, *tensor.shape)
    return tensor.movedim(dim, 0)


class _Rule:
    """The kernel of an overload under the key FuncTorchBatched."""

    def __init__(self, name: str, overload: str) -> None:
        self.name, self.overload = name, overload

    @cached_property
    def op(self) -> torch._ops.OpOverload:
        return getattr(getattr(torch.ops.mlxnorm, self.name), self.overload)

    def __call__(self, _keys: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        interpreter = retrieve_current_functorch_interpreter()
        level, batch = interpreter.level(), interpreter.batch_size()
        given = bound(self.op, args, kwargs)
        dims: dict[str, int | None] = {}
        for name, tensor in tensor_arguments(given).items():
            given[name], dims[name] = _unwrap(tensor, level)
        with torch._C._ExcludeDispatchKeyGuard(_BATCHED):
            if all(dim is None for dim in dims.values()):
                return self.op(**given)
            for name, dim in dims.items():
                if dim is None and is_written(self.op, name):
                    raise RuntimeError(
                        f"{self.op._schema.name}: vmap: {name} must be batched, as an input is; it "
                        "cannot hold the results of the whole batch"
                    )
            run = self.run_channels if has_channels(self.name) else self.run
            results = run(given, dims, batch)
        if isinstance(results, tuple):
            return tuple(_wrap(result, 0, level) for result in results)
        return None if results is None else _wrap(results, 0, level)

    def run(self, given: dict[str, Any], dims: dict[str, int | None], batch: int) -> Any:
        """Results with the batch in front, of a batch that is no longer hidden."""
        shapes = {
            name: torch.Size(n for i, n in enumerate(given[name].shape) if i != dim)
            for name, dim in dims.items()
        }
        leading = leading_dimensions(self.op, shapes, given)
        last = next(iter(shapes.values()))[-1]
        for name, dim in dims.items():
            rows = rows_of(self.op, name, given)
            if not rows.broadcasts:
                given[name] = _with_batch(given[name], dim, batch)
                continue
            operand = given[name].unsqueeze(0) if dim is None else given[name].movedim(dim, 0)
            one = rows.may_be_scalar and shapes[name].numel() == 1
            if dim is not None and one:  # for all elements of a slice
                operand = operand.reshape(batch, 1).expand(batch, last)
            rank = leading + rows.dimensions
            missing = 1 + rank - operand.dim()
            if missing >= 0:
                given[name] = operand[(slice(None), *[None] * missing)]
            elif shapes[name][:-missing].numel() == 1:
                given[name] = operand.flatten(1, 1 - missing)
            else:
                raise RuntimeError(
                    f"{self.op._schema.name}: vmap: {name} must have no more dimensions than the "
                    f"results have, {rank}, got shape {list(shapes[name])}"
                )
        return self.op(**given)

    def run_channels(
        self, given: dict[str, Any], dims: dict[str, int | None], batch: int
    ) -> Tensor | None:
        """The batch is one more of the dimensions behind the channels or, where operands differ
        along it, a part of the one before them."""
        x, *operands = (name for name in dims if not is_written(self.op, name))
        whole = [name for name in dims if name not in operands]
        for name in whole:
            given[name] = _with_batch(given[name], dims[name], batch)
        if all(dims[name] is None for name in operands):
            for name in whole:
                given[name] = given[name].movedim(0, -1)
            for name in operands:
                if given[name].dim() > 1:
                    given[name] = given[name].unsqueeze(-1)
            result = self.op(**given)
            return None if result is None else result.movedim(-1, 0)
        outs = [given.pop(name) for name in whole if name != x]
        count, rank = given[x].shape[1], given[x].dim()
        for name in operands:
            operand = _with_batch(given[name], dims[name], batch)
            shape = (batch, 1, operand.shape[1]) if operand.dim() == 2 else operand.shape
            ones = [1] * (rank - len(shape))
            # Of an operand without the dimension before the channels, or with channels alone.
            sizes = [*shape, *ones] if operand.dim() == 2 else [batch, *ones, *shape[1:]]
            operand = operand.reshape(sizes)
            given[name] = operand.expand(-1, count, *operand.shape[2:]).flatten(0, 1)
        given[x] = given[x].flatten(0, 1)
        default = getattr(torch.ops.mlxnorm, self.name).default
        result = default(**given).unflatten(0, (batch, count))
        for out in outs:
            out.copy_(result)
        return None if outs else result


def register(library: torch.library.Library) -> None:
    """By name: PyTorch takes longer to make an overload than to register with it."""
    for name in OPS:
        for overload in ("default", "out"):
            rule = _Rule(name, overload)
            library.impl(qualified(name, overload), rule, "FuncTorchBatched", with_keyset=True)
