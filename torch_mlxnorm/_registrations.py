"""What is registered from Python: how operators meet vmap and tensor subclasses."""

from __future__ import annotations

import importlib

import torch

from torch_mlxnorm import _vmap
from torch_mlxnorm._after_import import after_import

_LIBRARY = torch.library.Library("mlxnorm", "IMPL")
# By module of PyTorch's that is imported first: the one with the first call of a nested tensor, the
# other when somebody asks for it, which takes as long as importing PyTorch takes once more.
_SUBCLASSES = {"torch.nested._internal.ops": "_nested", "torch.distributed.tensor": "_dtensor"}


def _register(module: str) -> None:
    importlib.import_module(f"torch_mlxnorm.{module}").register(_LIBRARY)


_vmap.register(_LIBRARY)
for _theirs, _ours in _SUBCLASSES.items():
    after_import(_theirs, lambda module=_ours: _register(module))
