"""Fused RMS-norm kernels for PyTorch on Apple silicon (MPS) and CPU.

Importing the package registers the operators ``torch.ops.mlxnorm.*``; the functions here are
their typed, documented front.
"""

from pathlib import Path

import torch

from torch_mlxnorm._version import __version__

torch.ops.load_library(Path(__file__).with_name("_C.so"))

from torch_mlxnorm.functional import CastingMode, rms_norm  # noqa: E402
from torch_mlxnorm.modules import RMSNorm  # noqa: E402

__all__ = ["CastingMode", "RMSNorm", "__version__", "rms_norm"]
