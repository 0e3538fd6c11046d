"""How many kernels a device is given."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# That give a tensor without a kernel, although their schemas do not say that they are views.
WITHOUT_KERNEL = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty",
    "aten::new_empty_strided", "aten::_unsafe_view", "aten::lift_fresh", "aten::resize_",
    "aten::set_", "aten::_local_scalar_dense", "prim::device",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Inside the context, operators that launch a kernel, by name. One that is made of others
    counts as those; on a GPU some launch several."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.launches(func, args, result):
            self.counts[func._schema.name] += 1
        return result

    @staticmethod
    def launches(func: Any, args: tuple[Any, ...], result: Any) -> bool:
        if func._schema.name in WITHOUT_KERNEL or func.is_view:
            return False
        if func is torch.ops.aten._to_copy.default:
            return result is not args[0]
        return any(isinstance(r, torch.Tensor) for r in torch.utils._pytree.tree_leaves(result))
