"""Tensors that the tests run on: values, layouts in memory, outs that show what is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# Each length of row has its kernel on MPS: lanes of a SIMD group, registers with 2 and with 4
# words a thread, two passes over memory.
DIMS = [1, 7, 8, 33, 64, 128, 250, 513, 1000, 2816, 8200, 16384, 32776, 40001]


def type_id(value: object) -> str:
    return str(value).removeprefix("torch.")


def randn(
    *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(device)


# From a base tensor [2, 6, 4, 48], the shape of a small fused QKV.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed heads": lambda t: t.transpose(1, 2),
    "slice of a fused projection": lambda t: t.view(2, 6, 192)[..., 64:128],
    "slice, then heads": lambda t: t.view(2, 6, 192)[..., 64:128].view(2, 6, 4, 16).transpose(1, 2),
    "odd storage offset": lambda t: t.view(-1)[1 : 1 + 45 * 50].view(50, 45),
    "odd row stride": lambda t: t.view(48, 48)[:, :33],
    "every other row": lambda t: t.view(48, 48)[::2],
    "three leading dims, permuted": lambda t: t.permute(2, 0, 1, 3)[:, :, ::2],
    "expanded": lambda t: t[0, 0, 0].expand(5, 3, 48),
    "1-d": lambda t: t[1, 2, 3],
    "column of rows": lambda t: t.view(48, 48)[:, :1],
    "last dim strided": lambda t: t.view(48, 48).t(),
    "last dim strided, one row": lambda t: t.view(48, 48)[:, 3],
    "every other element": lambda t: t[..., ::2],
    "5-d": lambda t: t.view(2, 2, 3, 4, 48).permute(3, 1, 0, 2, 4),
    "5-d that folds": lambda t: t.view(2, 2, 3, 4, 48)[..., :32],
    "6-d with ones": lambda t: t.view(2, 1, 6, 1, 4, 48).transpose(0, 4),
}
BASE = (2, 6, 4, 48)


def misaligned(t: Tensor) -> Tensor:
    """A copy whose storage offset rules out 16-byte access."""
    storage = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
    return storage[1:].view(t.shape).copy_(t)


POISON = -1232.0  # exact in every dtype
GUARD = 64


class Guarded:
    """A contiguous tensor full of POISON, in the middle of a storage full of POISON."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        count = torch.Size(shape).numel()
        self._storage = torch.full((count + 2 * GUARD,), POISON, dtype=dtype, device=device)
        self.tensor = self._storage[GUARD : GUARD + count].view(shape)

    def assert_intact_around(self) -> None:
        storage = self._storage.cpu()
        around = torch.cat([storage[:GUARD], storage[storage.numel() - GUARD :]])
        assert around.eq(POISON).all(), "written outside of out"


def assert_only_written(t: Tensor, before: float) -> None:
    """Its elements, of a storage that was full of that value."""
    count = t.untyped_storage().nbytes() // t.element_size()
    others = t.as_strided((count,), (1,), 0).cpu().clone()
    others.as_strided(t.shape, t.stride(), t.storage_offset()).fill_(before)
    assert others.eq(before).all()
