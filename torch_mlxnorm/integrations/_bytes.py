"""Bytes that kernels read and write, of norms and of what is around them."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ._launches import Launches

# Kernels that begin something new: what goes in and what comes out are not of one chain.
BETWEEN = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul",
    "aten::convolution", "aten::_convolution", "aten::_scaled_dot_product", "aten::_softmax",
    "aten::silu", "aten::gelu", "aten::relu", "aten::embedding", "aten::mkldnn",
    "aten::_efficient_attention", "aten::_flash_attention", "torch_mlxnorm_count::attention",
)  # fmt: skip
RMS_NORMS = (
    "aten::rsqrt", "aten::_fused_rms_norm", "aten::rms_norm", "torch_mlxnorm_count::rms_norm",
    "aten::linalg_vector_norm", "mlxnorm::",
)  # fmt: skip
LAYER_NORMS = ("aten::native_layer_norm", "aten::layer_norm", "aten::native_group_norm")


class Bytes(TorchDispatchMode):
    """Inside the context, the kernels that are given to a device, as chains.

    A chain is what hangs together by tensors that one kernel writes and another reads. Matrices,
    convolutions, attention and activations of a feed-forward are in no chain: they end one and
    begin the next. So a chain is that of queries from the matrix to the attention, or the residual
    stream with its norms, modulation and gates; angles that several read join them. A chain
    belongs to RMS norms if one is in it, or else to layer norms if one is in it, or else to
    neither.

    A kernel reads each of its tensors once, without what is broadcast, and writes its results.
    Views are free; only floating point and complex numbers count.
    """

    def __init__(self) -> None:
        super().__init__()
        self._chains: Any = WeakTensorKeyDictionary()
        self._parents: list[int] = []
        self._kinds: list[int] = []  # 2: an RMS norm is in it, 1: a layer norm, 0: neither
        self._written: list[tuple[int, str, int]] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What is compiled already runs as compiled, and is counted."""
        return True

    @property
    def of_rms_norms(self) -> int:
        return sum(self.by_kernel(2).values())

    @property
    def of_layer_norms(self) -> int:
        return sum(self.by_kernel(1).values())

    def by_kernel(self, kind: int = 2) -> Counter[str]:
        """Bytes of the chains of RMS norms (2), of layer norms (1) or of neither (0)."""
        result: Counter[str] = Counter()
        for chain, name, moved in self._written:
            if self._kinds[self._root(chain)] == kind:
                result[name] += moved
        return result

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name.startswith(BETWEEN):
            return result
        inputs, outputs = _numbers((args, kwargs)), _numbers(result)
        is_view = func.is_view or name == "aten::_unsafe_view"
        if outputs and not (is_view and not any(t in self._chains for t in inputs)):
            chain = self._joined(inputs, outputs)
            kind = 2 if name.startswith(RMS_NORMS) else int(name.startswith(LAYER_NORMS))
            self._kinds[chain] = max(self._kinds[chain], kind)
            if Launches.launches(func, args, result):
                read = inputs[1:] if name == "aten::copy_" else inputs
                self._written.append((chain, name, sum(map(_bytes, [*read, *outputs]))))
        return result

    def _joined(self, inputs: list[Tensor], outputs: list[Tensor]) -> int:
        known = {self._root(self._chains[t]) for t in inputs if t in self._chains}
        if not known:
            known = {len(self._parents)}
            self._parents += known
            self._kinds.append(0)
        first, *others = known
        for other in others:
            self._parents[other] = first
            self._kinds[first] = max(self._kinds[first], self._kinds[other])
        for tensor in outputs:
            self._chains[tensor] = first
        return first

    def _root(self, chain: int) -> int:
        while self._parents[chain] != chain:
            self._parents[chain] = chain = self._parents[self._parents[chain]]
        return chain


def _numbers(values: Any) -> list[Tensor]:
    return [
        t
        for t in tree_leaves(values)
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
    ]


def _bytes(tensor: Tensor) -> int:
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or not size else 1
    return elements * tensor.element_size()


# On the device "meta" PyTorch takes some functions apart that are one kernel on a GPU. These stand
# in their place there, and compute nothing.


@functools.cache
def _stand_ins() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    @torch.library.custom_op("torch_mlxnorm_count::attention", mutates_args=())
    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    @torch.library.custom_op("torch_mlxnorm_count::rms_norm", mutates_args=())
    def rms_norm(x: Tensor, weight: Tensor | None) -> Tensor:
        return torch.empty_like(x)

    attention.register_fake(lambda q, k, v: q.new_empty(*q.shape[:-1], v.shape[-1]))
    rms_norm.register_fake(lambda x, weight: torch.empty_like(x))
    return attention, rms_norm


@contextlib.contextmanager
def attention_as_one_kernel() -> Iterator[None]:
    attention, _ = _stand_ins()

    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        return attention(query, key, value)

    name = "scaled_dot_product_attention"
    with mock.patch.object(torch.nn.functional, name, scaled_dot_product_attention):
        yield


@contextlib.contextmanager
def rms_norm_as_one_kernel() -> Iterator[None]:
    """PyTorch's own, which MPS has a kernel for."""
    _, one_kernel = _stand_ins()

    def rms_norm(
        input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        return one_kernel(input, weight)

    with mock.patch.object(torch.nn.functional, "rms_norm", rms_norm):
        yield
