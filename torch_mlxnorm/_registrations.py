"""What is registered from Python: how operators meet vmap and tensor subclasses."""

from __future__ import annotations

import torch

from torch_mlxnorm import _dtensor, _nested, _vmap
from torch_mlxnorm._roles import overloads

_LIBRARY = torch.library.Library("mlxnorm", "IMPL")

for _op in overloads():
    _vmap.register(_LIBRARY, _op)
    _nested.register(_LIBRARY, _op)
_dtensor.register(_LIBRARY)
