"""What is registered from Python: how operators meet vmap and tensor subclasses."""

from __future__ import annotations

import torch

from torch_mlxnorm import _dtensor, _nested, _vmap

_LIBRARY = torch.library.Library("mlxnorm", "IMPL")

# By name: an overload takes PyTorch longer to make than to register with, and is made when used.
_vmap.register(_LIBRARY)
_nested.register(_LIBRARY)
_dtensor.register(_LIBRARY)
